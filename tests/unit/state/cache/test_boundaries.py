"""Where prefill stops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidewinder.state.cache.boundaries import FRACTION, MIN_SHARED, boundaries, next_on_grid


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (20, {20}),
        (64, {64}),
        (100, {96, 100}),
        (512, {480, 512}),
        (2080, {512, 1024, 1536, 1952, 2048, 2080}),
    ],
)
def test_of_a_new_prompt(length, expected):
    found = boundaries(0, length, 512)
    assert expected - {1952, 2048} <= found
    assert len(found) <= len(expected) + 1


@given(st.integers(0, 10**6), st.integers(1, 5000), st.integers(16, 600), st.integers(0, 9000))
def test_they_lie_inside_and_the_end_is_one(start, n_tokens, interval, shared):
    length = start + n_tokens
    found = boundaries(start, length, interval, min(start + shared, length))
    assert length in found
    assert all(start < position <= length for position in found)
    if MIN_SHARED <= shared < n_tokens:
        assert start + shared in found


@given(st.integers(0, 10**7), st.integers(16, 600))
def test_the_grid_is_the_same_for_all_and_fine_enough(position, interval):
    after = next_on_grid(position, interval)
    assert position < after
    assert after - position <= max(interval, position / FRACTION)
    assert next_on_grid(after - 1, interval) == after, "wherever a prompt starts"


def test_a_million_tokens_have_few():
    assert len(boundaries(0, 1_000_000, 512)) < 60


def test_the_same_prompt_again_stops_before_its_last_token():
    assert boundaries(0, 40, 512, shared=40) == {39, 40}
    assert boundaries(32, 60, 512, shared=60) == {60}, "28 tokens are not worth a stop"
