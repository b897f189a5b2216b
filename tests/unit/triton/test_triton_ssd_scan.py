"""The Mamba-2 scan's Triton kernels against the definition."""

import pytest
import torch
from ops_cases import assert_untouched, make_case
from triton_cases import DTYPES, TOLERANCE, here, on_device, overridden

from sidewinder.ops.ssd_scan import reference, triton
from sidewinder.testing import assert_close

SMALL = {
    "ssd_wide": {"chunk": 32, "block_t": 16, "block_n": 16, "block_p": 16},
    "ssd_update": {"block_p": 8},
}
NO_LIMIT = (0.0, float("inf"))


@DTYPES
@pytest.mark.parametrize(
    ("lengths", "heads", "groups", "head_dim", "states", "dt_limit", "state_dtype"),
    [
        ([1, 1], 3, 2, 10, 20, (0.05, 0.4), torch.float32),
        ([1, 3, 70], 2, 1, 6, 7, NO_LIMIT, torch.float32),
        ([40, 33], 3, 3, 18, 17, (0.05, 0.4), torch.bfloat16),
        ([1, 170, 40], 2, 1, 6, 7, NO_LIMIT, torch.float32),  # more chunks than passed on at once
    ],
    ids=str,
)
def test_ssd_is_the_reference(
    dtype, lengths, heads, groups, head_dim, states, dt_limit, state_dtype
):
    case = make_case(lengths, seed=heads)
    tokens = case.seqs.n_tokens
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
    state = here(expected_state)
    expected = reference.ssd_scan(**arguments, state=expected_state, seqs=case.seqs)
    with overridden(**SMALL):
        result = on_device(triton.ssd_scan, **arguments, state=state, seqs=case.seqs)
    assert_close("y", expected, result, TOLERANCE[dtype])
    assert_untouched(case, state.cpu())
    slots = case.seqs.slots
    allowed = max(TOLERANCE[dtype], TOLERANCE[state_dtype])  # operands of products are rounded
    assert_close("state", expected_state[slots], state.cpu()[slots], allowed)
