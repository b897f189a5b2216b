"""The scan from x_proj's output on: one kernel for single tokens, parts, and the definition."""

import pytest
import torch
from ops_cases import assert_only_columns, assert_untouched, columns_for, make_case
from triton_cases import DTYPES, TOLERANCE, here, launching, on_device, overridden

from sidewinder.ops.projected_scan import parts, reference, triton
from sidewinder.testing import assert_close

SMALL = {"projected_scan": {"block_d": 16, "num_warps": 1}}


def arguments_of(
    case, channels, states, rank, dtype, eps=None, gated=True, biased=True, weighted=False
):
    tokens = case.seqs.n_tokens
    return {
        "x": case.strided(tokens, channels, dtype=dtype),
        "low": case.strided(tokens, rank + 2 * states, dtype=dtype),
        "dt_proj": case.strided(channels, rank, dtype=dtype),
        "norm_eps": eps,
        "norm_weight": case.randn(rank + 2 * states).to(dtype) if weighted else None,
        "A": -torch.exp(case.strided(states, channels)),
        "D": case.randn(channels),
        "z": case.strided(tokens, channels, dtype=dtype) if gated else None,
        "dt_bias": case.randn(channels) - 2 if biased else None,
    }


def check(run, case, arguments, channels, states, dtype, state_dtype, into=False):
    # The state as Zamba passes it: a slice of channels.
    expected_state = case.state(states, channels + 2, dtype=state_dtype)[..., 1:-1]
    state = here(expected_state)
    expected = reference.projected_scan(**arguments, state=expected_state, seqs=case.seqs)
    out = here(columns_for(arguments["x"])) if into else None
    result = on_device(run, **arguments, state=state, seqs=case.seqs, out=out)
    assert_close("y", expected, result, TOLERANCE[dtype])
    if out is not None:
        assert torch.equal(out.cpu(), result)
        assert_only_columns(out)
    assert_untouched(case, state.cpu())
    slots = case.seqs.slots
    allowed = max(TOLERANCE[dtype], TOLERANCE[state_dtype])  # a step rounded the other way
    assert_close("state", expected_state[slots], state.cpu()[slots], allowed)


@DTYPES
@pytest.mark.parametrize("into", [False, True], ids=["new", "into columns"])
@pytest.mark.parametrize(
    ("lengths", "channels", "states", "rank", "eps", "weighted", "gated", "biased", "state_dtype"),
    [
        ([1], 19, 16, 7, None, False, True, True, torch.float32),
        ([1, 1, 1], 9, 5, 16, 1e-6, False, True, True, torch.float32),
        ([1, 1, 1], 9, 5, 13, 1e-6, True, True, True, torch.float32),
        ([1, 1, 1, 1], 17, 1, 1, 1e-3, False, False, False, torch.bfloat16),
    ],
    ids=str,
)
def test_single_tokens_are_the_reference(
    dtype, lengths, channels, states, rank, eps, weighted, gated, biased, state_dtype, into
):
    case = make_case(lengths, seed=channels)
    arguments = arguments_of(case, channels, states, rank, dtype, eps, gated, biased, weighted)
    with overridden(**SMALL):
        check(triton.projected_scan, case, arguments, channels, states, dtype, state_dtype, into)


@pytest.mark.parametrize("weighted", [False, True], ids=["weightless", "weighted"])
@pytest.mark.parametrize("lengths", [[1, 3], [4, 9], [1] * 5])
def test_other_batches_go_by_parts(lengths, weighted):
    case = make_case(lengths, seed=1)
    arguments = arguments_of(case, 9, 4, 5, torch.float32, eps=1e-5, weighted=weighted)
    for run in (triton.projected_scan, parts.projected_scan):
        for into in (False, True):
            check(run, case, arguments, 9, 4, torch.float32, torch.float32, into)


@pytest.mark.parametrize("weighted", [False, True], ids=["weightless", "weighted"])
def test_a_few_single_tokens_are_one_launch(weighted):
    case = make_case([1, 1], seed=1)
    arguments = here(arguments_of(case, 9, 4, 5, torch.float32, eps=1e-5, weighted=weighted))
    with launching.recording() as launches:
        triton.projected_scan(**arguments, state=here(case.state(4, 9)), seqs=here(case.seqs))
    assert [launch.kernel.__name__ for launch in launches] == ["update"]
