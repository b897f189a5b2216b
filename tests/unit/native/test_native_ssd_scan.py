import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, LEVELS, TOLERANCE, kernels_of
from ops_cases import LENGTHS, assert_untouched, make_case

from sidewinder.ops import native
from sidewinder.ops.ssd_scan import reference
from sidewinder.testing import assert_close


@LEVELS
@DTYPES
@settings(max_examples=15)
@given(
    LENGTHS, st.integers(1, 5), st.sampled_from([1, 6, 16, 64, 72, 130]), st.integers(1, 20),
    st.sampled_from([(0.0, float("inf")), (0.05, 0.4)]),
    st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99), st.data(),
)  # fmt: skip
def test_ssd_is_the_reference(
    level, dtype, lengths, heads, head_dim, states, dt_limit, state_dtype, seed, data
):
    case = make_case(lengths, seed)
    tokens, groups = case.seqs.n_tokens, data.draw(st.integers(1, heads))
    arguments = {
        "x": case.strided(tokens, heads, head_dim, dtype=dtype),
        "dt": case.strided(tokens, heads, dtype=dtype),
        "A": -torch.exp(case.randn(heads)),
        "B": case.strided(tokens, groups, states, dtype=dtype),
        "C": case.strided(tokens, groups, states, dtype=dtype),
        "D": case.randn(heads),
        "dt_bias": case.randn(heads) - 2,
        "head_group": torch.arange(heads) * groups // heads,
        "dt_limit": dt_limit,
    }
    expected_state = case.state(heads, states, head_dim, dtype=state_dtype)
    state = expected_state.clone()
    expected = reference.ssd_scan(**arguments, state=expected_state, seqs=case.seqs)
    with kernels_of(level):
        result = native.ssd_scan(**arguments, state=state, seqs=case.seqs)
    assert_close("y", expected, result, TOLERANCE[dtype])
    assert_untouched(case, state)
    slots = case.seqs.slots
    assert_close("state", expected_state[slots], state[slots], TOLERANCE[state_dtype])
