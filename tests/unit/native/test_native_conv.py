import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, LEVELS, TOLERANCE, kernels_of
from ops_cases import LENGTHS, assert_untouched, make_case

from sidewinder.ops import native
from sidewinder.ops.causal_conv1d import reference
from sidewinder.testing import assert_close


@LEVELS
@DTYPES
@settings(max_examples=15)
@given(
    LENGTHS, st.integers(1, 300), st.integers(1, 6), st.booleans(), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_conv_is_the_reference(level, dtype, lengths, channels, taps, with_bias, activation, seed):
    case = make_case(lengths, seed)
    x = case.strided(case.seqs.n_tokens, channels, dtype=dtype)
    weight = case.randn(taps, channels, dtype=dtype)
    bias = case.randn(channels, dtype=dtype) if with_bias else None
    expected_state = case.state(taps - 1, channels, dtype=dtype)
    state = expected_state.clone()
    expected = reference.causal_conv1d(x, weight, bias, expected_state, case.seqs, activation)
    with kernels_of(level):
        result = native.causal_conv1d(x, weight, bias, state, case.seqs, activation)
    assert_close("y", expected, result, TOLERANCE[dtype])
    if taps > 1:
        assert_untouched(case, state)
        assert torch.equal(expected_state[case.seqs.slots], state[case.seqs.slots])


@LEVELS
@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_conv_in_chunks_is_bit_for_bit_the_whole(level, chunk):
    case = make_case([23], seed=1)
    x, weight = case.randn(23, 40), case.randn(4, 40)
    state = case.state(3, 40)
    state_of_parts = state.clone()
    with kernels_of(level):
        whole = native.causal_conv1d(x, weight, None, state, case.seqs)
        parts = []
        for start in range(0, 23, chunk):
            part = x[start : start + chunk]
            seqs = _continuing(case, len(part), start)
            parts.append(native.causal_conv1d(part, weight, None, state_of_parts, seqs))
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(state[case.seqs.slots], state_of_parts[case.seqs.slots])


def _continuing(case, length, start):
    from sidewinder.state.batch import pack

    fresh = bool(case.seqs.fresh[0]) and start == 0
    return pack([[0] * length], case.seqs.slots.tolist(), [0 if fresh else 1]).seqs
