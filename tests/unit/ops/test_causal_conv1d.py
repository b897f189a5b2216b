import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_cases import LENGTHS, assert_untouched, make_case
from torch.nn.functional import conv1d, silu

from sidewinder.ops.causal_conv1d import reference, vectorized
from sidewinder.state.batch import pack
from sidewinder.testing import assert_close


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(1, 37), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_vectorized_is_the_reference(lengths, channels, taps, with_bias, seed):
    case = make_case(lengths, seed)
    x = case.strided(case.seqs.n_tokens, channels)
    weight = case.randn(taps, channels)
    bias = case.randn(channels) if with_bias else None
    expected_state = case.state(taps - 1, channels)
    state = expected_state.clone()
    expected = reference.causal_conv1d(x, weight, bias, expected_state, case.seqs)
    result = vectorized.causal_conv1d(x, weight, bias, state, case.seqs)
    assert_close("y", expected, result, 1e-6)
    if taps > 1:
        assert_untouched(case, state)
        assert_close("state", expected_state[case.seqs.slots], state[case.seqs.slots], 0)


@pytest.mark.parametrize("convolve", [reference.causal_conv1d, vectorized.causal_conv1d])
@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_a_fresh_sequence_is_torchs_padded_convolution(convolve, length):
    x, weight, bias = torch.randn(length, 6), torch.randn(4, 6), torch.randn(6)
    state = torch.full((1, 3, 6), torch.nan)
    padded = conv1d(x.T[None], weight.T[:, None], bias, padding=3, groups=6)[0, :, :length]
    seqs = pack([[0] * length], [0]).seqs
    assert_close("y", silu(padded.T), convolve(x, weight, bias, state, seqs), 1e-6)
    assert_close("state", torch.cat([torch.zeros(3, 6), x])[-3:], state[0], 0)


@pytest.mark.parametrize("convolve", [reference.causal_conv1d, vectorized.causal_conv1d])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_give_what_the_whole_gives(convolve, chunk):
    x, weight = torch.randn(11, 3), torch.randn(4, 3)
    state = torch.full((2, 3, 3), torch.nan)
    whole = convolve(x, weight, None, state, pack([[0] * 11], [0]).seqs, activation=False)
    parts = [
        convolve(
            part, weight, None, state, pack([[0] * len(part)], [1], [i]).seqs, activation=False
        )
        for i, part in enumerate(x.split(chunk))
    ]
    assert_close("y", whole, torch.cat(parts), 1e-6)
    assert_close("state", state[0], state[1], 0)


def test_bfloat16_is_rounded_once():
    x, weight = torch.randn(40, 9).bfloat16(), torch.randn(4, 9).bfloat16()
    state = torch.zeros(1, 3, 9, dtype=torch.bfloat16)
    seqs = pack([[0] * 40], [0]).seqs
    wide = reference.causal_conv1d(x.float(), weight.float(), None, torch.zeros(1, 3, 9), seqs)
    result = vectorized.causal_conv1d(x, weight, None, state, seqs)
    assert result.dtype == torch.bfloat16
    assert_close("y", wide.bfloat16(), result, 2**-8)
