import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_cases import LENGTHS, Case, assert_untouched, cut, make_case

from sidewinder.ops.ssd_scan import chunked, reference
from sidewinder.testing import assert_close

NO_LIMIT = (0.0, float("inf"))

TOLERANCE = 1e-5
"""Rounding of float32 sums in another order; tiny cases cancel to values well below their terms."""


def _arguments(case: Case, heads: int, width: int, groups: int, states: int) -> dict:
    tokens = case.seqs.n_tokens
    return {
        "x": case.strided(tokens, heads, width),
        "dt": case.strided(tokens, heads),
        "A": -torch.exp(case.randn(heads)),
        "B": case.strided(tokens, groups, states),
        "C": case.strided(tokens, groups, states),
        "D": case.randn(heads),
        "dt_bias": case.randn(heads) - 2,
        # Not a division of heads by groups: a rank may hold parts of groups.
        "head_group": torch.arange(heads) * groups // heads,
    }


def _rows(arguments: dict, rows: slice) -> dict:
    by_token = ("x", "dt", "B", "C")
    return {n: value[rows] if n in by_token else value for n, value in arguments.items()}


@settings(max_examples=30, deadline=None)
@given(
    LENGTHS,
    st.integers(1, 7),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from([NO_LIMIT, (0.1, 0.3)]),
    st.integers(0, 99),
)
def test_chunked_is_the_reference(lengths, heads, width, groups, states, dt_limit, seed):
    case = make_case(lengths, seed)
    arguments = _arguments(case, heads, width, groups, states) | {"dt_limit": dt_limit}
    expected_state = case.state(heads, states, width)
    state = expected_state.clone()
    expected = reference.ssd_scan(**arguments, state=expected_state, seqs=case.seqs)
    result = chunked.ssd_scan(**arguments, state=state, seqs=case.seqs)
    assert_close("y", expected, result, TOLERANCE)
    assert_untouched(case, state)
    assert_close("state", expected_state[case.seqs.slots], state[case.seqs.slots], TOLERANCE)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 130), st.data())
def test_two_chunks_give_what_the_whole_gives(length, data):
    case = make_case([length], seed=length)
    arguments = _arguments(case, 3, 4, 2, 5) | {"dt_limit": (0.05, 1.0)}
    state = case.state(3, 5, 4)
    state_of_parts = state.clone()
    whole = chunked.ssd_scan(**arguments, state=state, seqs=case.seqs)
    point = data.draw(st.integers(1, length - 1))
    first, second = cut(case, 0, point)
    parts = [
        chunked.ssd_scan(**_rows(arguments, slice(0, point)), state=state_of_parts, seqs=first),
        chunked.ssd_scan(**_rows(arguments, slice(point, None)), state=state_of_parts, seqs=second),
    ]
    assert_close("y", whole, torch.cat(parts), TOLERANCE)
    slot = case.seqs.slots
    assert_close("state", state[slot], state_of_parts[slot], TOLERANCE)


def test_decay_stays_exact_after_large_steps():
    """Large steps first, small ones after: their decay must not be lost in a large running sum."""
    case = make_case([60], seed=4)
    arguments = _arguments(case, 2, 3, 1, 4) | {"dt_limit": NO_LIMIT}
    arguments["dt"] = torch.full((60, 2), -4.0)
    arguments["dt"][:20] = 5000.0
    state = case.state(2, 4, 3)
    expected_state = state.clone()
    expected = reference.ssd_scan(**arguments, state=expected_state, seqs=case.seqs)
    result = chunked.ssd_scan(**arguments, state=state, seqs=case.seqs)
    assert_close("y after", expected[30:], result[30:], TOLERANCE)


@pytest.mark.parametrize("length", [1, 70])
def test_a_bfloat16_state_is_rounded_only_when_stored(length):
    case = make_case([1, length], seed=3)
    arguments = _arguments(case, 3, 4, 2, 5) | {"dt_limit": NO_LIMIT}
    state = case.state(3, 5, 4, dtype=torch.bfloat16)
    wide = state.float()
    expected = reference.ssd_scan(**arguments, state=wide, seqs=case.seqs)
    result = chunked.ssd_scan(**arguments, state=state, seqs=case.seqs)
    assert_close("y", expected, result, TOLERANCE)
    slots = case.seqs.slots
    assert_close("state", wide[slots].bfloat16(), state[slots], 2**-8)
