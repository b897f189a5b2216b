"""The latency setting: prompts run beside decodes in a measured way; priorities in the queue."""

from dataclasses import replace

import pytest
from test_scheduler import request, run, start
from toy_executor import ToyExecutor, toy_output

from sidewinder.config import EngineConfig
from sidewinder.engine.limits import Limits
from sidewinder.engine.pacing import PROBE_STEPS, SLOWDOWN, Pacer
from sidewinder.engine.scheduler import Scheduler


def simulate(pacer, n_steps, decode_s, token_s, fixed_s=0.0, waiting=10**9):
    """Steps of a machine with these costs; what each mixed step took, and the prompt tokens."""
    times, left = [], waiting
    for _ in range(n_steps):
        n_tokens = min(left, pacer.prompt_tokens())
        seconds = decode_s + (fixed_s + token_s * n_tokens if n_tokens else 0.0)
        pacer.took(4, n_tokens, seconds)
        times.append((n_tokens, seconds))
        left -= n_tokens
    return times


@pytest.mark.parametrize("token_s", [0.0001, 0.002])
@pytest.mark.parametrize("fixed_s", [0.0, 0.003])
def test_steps_stay_below_twice_a_decode(token_s, fixed_s):
    pacer = Pacer()
    simulate(pacer, 5, 0.01, token_s, waiting=0)
    times = simulate(pacer, 600, 0.01, token_s, fixed_s)
    late = times[500:]
    assert max(seconds for _, seconds in late) < 0.02
    mixed = [n_tokens for n_tokens, _ in late if n_tokens]
    expected = ((SLOWDOWN - 1) * 0.01 - fixed_s) / token_s
    assert 0.3 * expected <= sum(mixed) / len(mixed) <= 1.1 * expected + 1


def test_it_follows_decodes_that_get_faster():
    pacer = Pacer()
    simulate(pacer, 5, 0.04, 0.001, waiting=0)
    simulate(pacer, 100, 0.04, 0.001)
    times = simulate(pacer, 40 * PROBE_STEPS, 0.01, 0.001)
    assert times[-1][1] < 0.02
    assert [n_tokens for n_tokens, _ in times[-PROBE_STEPS - 1 :]].count(0) == 1


def test_prompts_go_on_however_dear_they_are():
    pacer = Pacer()
    simulate(pacer, 5, 0.001, 1.0, waiting=0)
    assert sum(n_tokens for n_tokens, _ in simulate(pacer, 100, 0.001, 1.0)) > 80


def test_without_decodes_prompts_fill_the_step():
    scheduler = Scheduler(Limits(4, 16, 5), pacer=Pacer())
    executor = ToyExecutor(scheduler.limits)
    scheduler.add(request(0, range(14), max_tokens=30))
    scheduler.add(request(1, range(16), max_tokens=2))
    step = scheduler.plan()
    assert sum(len(part.tokens) for part in step.sequences) == 16
    scheduler.took(step, 0.01)
    scheduler.commit(executor.step(step))
    outputs = {}
    while (step := scheduler.plan()) is not None:
        n_prompt = sum(len(part.tokens) for part in step.sequences if len(part.tokens) > 1)
        scheduler.took(step, 0.01 + 0.004 * n_prompt)
        for part in scheduler.commit(executor.step(step)):
            outputs[part.sequence.request.id] = part.sequence.output
    assert outputs[0] == toy_output(range(14), 30)
    assert outputs[1] == toy_output(range(16), 2)


def test_lower_numbers_go_first_and_equal_ones_in_order():
    scheduler, executor = start(n_slots=1)
    for number, priority in enumerate([0, 5, 0, -1, 5]):
        scheduler.add(replace(request(number, [number + 1], max_tokens=1), priority=priority))
    _, reasons = run(scheduler, executor)
    assert list(reasons) == [3, 0, 2, 1, 4]


def test_urgent_prompts_take_the_larger_chunk():
    scheduler, executor = start(max_step_tokens=11)
    scheduler.add(replace(request(0, range(40)), priority=1))
    scheduler.commit(executor.step(scheduler.plan()))
    scheduler.add(replace(request(1, range(40)), priority=0))
    step = scheduler.plan()
    assert [(part.slot, len(part.tokens)) for part in step.sequences] == [(1, 6), (0, 5)]
    scheduler.commit(executor.step(step))
    outputs, _ = run(scheduler, executor)
    assert outputs == {0: toy_output(range(40), 4), 1: toy_output(range(40), 4)}


def test_latency_needs_one_planner():
    with pytest.raises(ValueError, match="scheduling='latency'"):
        EngineConfig("m", scheduling="latency", launch="torchrun")
    with pytest.raises(ValueError, match="scheduling='fast'"):
        EngineConfig("m", scheduling="fast")
