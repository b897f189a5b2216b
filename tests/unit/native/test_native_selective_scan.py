import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, LEVELS, TOLERANCE, kernels_of
from ops_cases import (
    LENGTHS,
    Case,
    assert_only_columns,
    assert_untouched,
    columns_for,
    cut,
    make_case,
)

from sidewinder.ops import native
from sidewinder.ops.selective_scan import reference
from sidewinder.testing import assert_close


def _arguments(case: Case, channels: int, states: int, dtype, gated=True, biased=True) -> dict:
    tokens = case.seqs.n_tokens
    return {
        "x": case.strided(tokens, channels, dtype=dtype),
        "dt": case.strided(tokens, channels, dtype=dtype),
        "A": -torch.exp(case.strided(states, channels)),
        "B": case.strided(tokens, states, dtype=dtype),
        "C": case.strided(tokens, states, dtype=dtype),
        "D": case.randn(channels),
        "z": case.strided(tokens, channels, dtype=dtype) if gated else None,
        "dt_bias": case.randn(channels) - 2 if biased else None,
    }


def _rows(arguments: dict, rows: slice) -> dict:
    by_token = ("x", "dt", "B", "C", "z")
    return {name: value[rows] if name in by_token else value for name, value in arguments.items()}


@LEVELS
@DTYPES
@settings(max_examples=15)
@given(
    LENGTHS, st.integers(1, 150), st.integers(1, 19), st.booleans(), st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_scan_is_the_reference(
    level, dtype, lengths, channels, states, gated, biased, state_dtype, into, seed
):
    case = make_case(lengths, seed)
    arguments = _arguments(case, channels, states, dtype, gated, biased)
    # The state as Zamba passes it: a slice of channels.
    expected_state = case.state(states, channels + 2, dtype=state_dtype)[..., 1:-1]
    state = expected_state.clone(memory_format=torch.preserve_format)
    expected = reference.selective_scan(**arguments, state=expected_state, seqs=case.seqs)
    out = columns_for(arguments["x"]) if into else None
    with kernels_of(level):
        result = native.selective_scan(**arguments, state=state, seqs=case.seqs, out=out)
    assert_close("y", expected, result, TOLERANCE[dtype])
    if out is not None:
        assert result is out
        assert_only_columns(out)
    assert_untouched(case, state)
    slots = case.seqs.slots
    assert_close("state", expected_state[slots], state[slots], TOLERANCE[state_dtype])


@LEVELS
@pytest.mark.parametrize("point", [1, 7, 8, 29])
def test_a_scan_cut_anywhere_is_bit_for_bit_the_whole(level, point):
    case = make_case([30], seed=point)
    arguments = _arguments(case, channels=70, states=16, dtype=torch.float32)
    state = case.state(16, 70)
    state_of_parts = state.clone()
    with kernels_of(level):
        whole = native.selective_scan(**arguments, state=state, seqs=case.seqs)
        parts = [
            native.selective_scan(**_rows(arguments, rows), state=state_of_parts, seqs=seqs)
            for rows, seqs in zip(
                (slice(0, point), slice(point, None)), cut(case, 0, point), strict=True
            )
        ]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(state[case.seqs.slots], state_of_parts[case.seqs.slots])


@LEVELS
@pytest.mark.parametrize("step", [-1000.0, -40.0, 40.0, 1000.0])
def test_extreme_steps_neither_overflow_nor_vanish(level, step):
    case = make_case([20], seed=1)
    arguments = _arguments(case, channels=9, states=3, dtype=torch.float32, gated=False)
    arguments["dt"] = torch.full((20, 9), step) + case.randn(20, 9)
    expected_state = case.state(3, 9)
    state = expected_state.clone()
    expected = reference.selective_scan(**arguments, state=expected_state, seqs=case.seqs)
    with kernels_of(level):
        result = native.selective_scan(**arguments, state=state, seqs=case.seqs)
    assert_close("y", expected, result, 3e-6)


@LEVELS
@pytest.mark.parametrize("name", ["x", "dt", "B", "C", "z"])
def test_a_nan_in_an_input_comes_out_as_nan(level, name):
    case = make_case([5, 1], seed=4)
    arguments = _arguments(case, channels=9, states=3, dtype=torch.float32)
    arguments[name] = arguments[name].clone()
    arguments[name][3] = torch.nan
    with kernels_of(level):
        result = native.selective_scan(**arguments, state=case.state(3, 9), seqs=case.seqs)
    assert result[3].isnan().all()
