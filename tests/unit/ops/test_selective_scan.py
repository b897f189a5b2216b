import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_cases import (
    LENGTHS,
    Case,
    assert_only_columns,
    assert_untouched,
    columns_for,
    cut,
    make_case,
)

from sidewinder.ops.selective_scan import chunked, reference
from sidewinder.testing import assert_close

TOLERANCE = 1e-5
"""Rounding of float32 sums in another order; tiny cases cancel to values well below their terms."""


def _arguments(case: Case, channels: int, states: int, gated: bool, biased: bool) -> dict:
    tokens = case.seqs.n_tokens
    return {
        "x": case.strided(tokens, channels),
        "dt": case.strided(tokens, channels),
        "A": -torch.exp(case.strided(states, channels)),
        "B": case.strided(tokens, states),
        "C": case.strided(tokens, states),
        "D": case.randn(channels),
        "z": case.strided(tokens, channels) if gated else None,
        "dt_bias": case.randn(channels) - 2 if biased else None,
    }


def _rows(arguments: dict, rows: slice) -> dict:
    """The arguments with only these tokens."""
    by_token = ("x", "dt", "B", "C", "z")
    return {
        name: value[rows] if name in by_token and value is not None else value
        for name, value in arguments.items()
    }


@settings(max_examples=30, deadline=None)
@given(
    LENGTHS,
    st.integers(1, 21),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
    st.sampled_from([64, 4 << 20]),
    st.booleans(),
    st.integers(0, 99),
)
def test_chunked_is_the_reference(
    lengths, channels, states, gated, biased, chunk_bytes, into, seed
):
    case = make_case(lengths, seed)
    arguments = _arguments(case, channels, states, gated, biased)
    # The state as Zamba passes it: a slice of channels.
    expected_state = case.state(states, channels + 2)[..., 1:-1]
    state = expected_state.clone(memory_format=torch.preserve_format)
    outs = [columns_for(arguments["x"]) if into else None for _ in range(2)]
    expected = reference.selective_scan(
        **arguments, state=expected_state, seqs=case.seqs, out=outs[0]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "CHUNK_BYTES", chunk_bytes)
        result = chunked.selective_scan(**arguments, state=state, seqs=case.seqs, out=outs[1])
    assert_close("y", expected, result, TOLERANCE)
    if into:
        assert expected is outs[0]
        assert result is outs[1]
        for out in outs:
            assert_only_columns(out)
    assert_untouched(case, state)
    assert_close("state", expected_state[case.seqs.slots], state[case.seqs.slots], TOLERANCE)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 130), st.data())
def test_two_chunks_give_what_the_whole_gives(length, data):
    case = make_case([length], seed=length)
    arguments = _arguments(case, channels=5, states=3, gated=True, biased=True)
    state = case.state(3, 5)
    state_of_parts = state.clone()
    whole = chunked.selective_scan(**arguments, state=state, seqs=case.seqs)
    point = data.draw(st.integers(1, length - 1))
    first, second = cut(case, 0, point)
    parts = [
        chunked.selective_scan(
            **_rows(arguments, slice(0, point)), state=state_of_parts, seqs=first
        ),
        chunked.selective_scan(
            **_rows(arguments, slice(point, None)), state=state_of_parts, seqs=second
        ),
    ]
    assert_close("y", whole, torch.cat(parts), TOLERANCE)
    slot = case.seqs.slots
    assert_close("state", state[slot], state_of_parts[slot], TOLERANCE)


@pytest.mark.parametrize("step", [-40.0, 40.0])
def test_extreme_steps_neither_overflow_nor_cancel(step):
    case = make_case([100], seed=1)
    arguments = _arguments(case, channels=4, states=3, gated=False, biased=False)
    arguments["dt"] = torch.full((100, 4), step) + case.randn(100, 4)
    state, expected_state = case.state(3, 4), case.state(3, 4)
    expected_state.copy_(state)
    expected = reference.selective_scan(**arguments, state=expected_state, seqs=case.seqs)
    result = chunked.selective_scan(**arguments, state=state, seqs=case.seqs)
    assert_close("y", expected, result, TOLERANCE)


def test_a_bfloat16_state_is_rounded_only_when_stored():
    case = make_case([1, 50], seed=2)
    arguments = _arguments(case, channels=4, states=3, gated=True, biased=True)
    state = case.state(3, 4, dtype=torch.bfloat16)
    wide = state.float()
    expected = reference.selective_scan(**arguments, state=wide, seqs=case.seqs)
    result = chunked.selective_scan(**arguments, state=state, seqs=case.seqs)
    assert_close("y", expected, result, TOLERANCE)
    slots = case.seqs.slots
    assert_close("state", wide[slots].bfloat16(), state[slots], 2**-8)
