"""`Gatherer`: what is delivered after which step; nothing is lost, doubled or out of order."""

import random

import pytest

from sidewinder.engine.gathering import LONGEST_S, Gatherer
from sidewinder.engine.outputs import Increment

STEP_S = 1 / 256
"""A binary fraction, so that sums of it are exact."""


def deliveries(n_requests, n_steps, events_per_s, step_s=STEP_S):
    """Tokens per event of each request that draws a token per step."""
    gatherer, found = Gatherer(events_per_s), {number: [] for number in range(n_requests)}
    for step in range(1, n_steps + 1):
        tokens = [Increment(number, token_ids=[step]) for number in range(n_requests)]
        counts = dict.fromkeys(found, 0)
        for increment, stamp in gatherer.add(tokens, 128 + step * step_s, n_requests):
            assert stamp == 128 + increment.token_ids[0] * step_s
            counts[increment.request_id] += 1
        for number, count in counts.items():
            found[number] += [count] if count else []
    return found


def test_without_a_rate_every_token_is_an_event():
    assert deliveries(20, 50, None) == {number: [1] * 50 for number in range(20)}


def test_one_request_has_an_event_per_step():
    assert deliveries(1, 50, 1 / STEP_S) == {0: [1] * 50}


@pytest.mark.parametrize(
    ("n_requests", "n_tokens"), [(10, 10), (20, 20), (200, int(LONGEST_S / STEP_S))]
)
def test_the_pause_grows_with_the_requests_up_to_a_limit(n_requests, n_tokens):
    for counts in deliveries(n_requests, 200, 1 / STEP_S).values():
        assert counts[0] == 1
        assert set(counts[1:]) == {n_tokens}


def test_a_step_that_would_end_too_late_is_not_waited_for():
    assert set(deliveries(10, 50, 250, step_s=0.03)[0]) == {1}
    assert set(deliveries(10, 50, 250, step_s=0.5)[0]) == {1}


def test_first_tokens_and_ends_come_at_once():
    gatherer = Gatherer(250)
    (first,) = gatherer.add([Increment(0, token_ids=[1])], 100.0, 10)
    assert first[0].token_ids == [1]
    assert not gatherer.add([Increment(0, token_ids=[2])], 100.001, 10)
    prompt, begins = Increment(1), Increment(2, token_ids=[1])
    ends = Increment(0, token_ids=[3], finish_reason="stop")
    due = gatherer.add([prompt, begins, ends], 100.002, 10)
    assert [(increment.request_id, increment.token_ids) for increment, _ in due] == [
        (1, []), (2, [1]), (0, [2]), (0, [3])
    ]  # fmt: skip
    short = Increment(3, token_ids=[1], finish_reason="length")
    assert len(gatherer.add([short], 100.003, 10)) == 1
    # Nothing is known of ids that ended.
    again = [Increment(number, token_ids=[4]) for number in (0, 3)]
    assert len(gatherer.add(again, 100.004, 10)) == 2
    assert gatherer.rest() == []


def test_a_dropped_request_leaves_nothing():
    gatherer = Gatherer(250)
    for step in range(3):
        gatherer.add([Increment(0, token_ids=[1])], 100 + step * 0.001, 10)
    gatherer.drop(0)
    gatherer.drop(0)
    assert gatherer.rest() == []


@pytest.mark.parametrize("seed", range(5))
def test_everything_arrives_once_and_in_order(seed):
    drawn, gatherer = random.Random(seed), Gatherer(drawn_rate(seed))
    lengths = {number: drawn.randint(1, 40) for number in range(12)}
    left, arrived, now = dict(lengths), {number: [] for number in lengths}, 50.0
    while left:
        now += drawn.choice([0.001, 0.004, 0.2])
        increments = []
        for number in drawn.sample(sorted(left), drawn.randint(0, len(left))):
            left[number] -= 1
            reason = None if left[number] else "length"
            token = lengths[number] - left[number]
            increments.append(Increment(number, token_ids=[token], finish_reason=reason))
        left = {number: n_left for number, n_left in left.items() if n_left}
        for increment, _ in gatherer.add(increments, now, len(left)):
            arrived[increment.request_id] += increment.token_ids
    assert arrived == {number: list(range(1, n + 1)) for number, n in lengths.items()}
    assert gatherer.rest() == []


def drawn_rate(seed):
    return [None, 1, 50, 250, 10_000][seed]
