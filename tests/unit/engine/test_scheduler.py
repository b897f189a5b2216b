"""The scheduler against a toy model that checks every step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_executor import ToyExecutor, toy_output, toy_score

from sidewinder.engine.limits import Limits
from sidewinder.engine.request import Request
from sidewinder.engine.scheduler import Scheduler
from sidewinder.sampling import SamplingParams


def request(number, prompt, max_tokens=4, **values):
    params = SamplingParams(max_tokens=max_tokens, temperature=0, **values)
    return Request(number, tuple(prompt), params)


def run(scheduler, executor):
    """Step until nothing is left; outputs and finish reasons by request id."""
    outputs, reasons = {}, {}
    while (plan := scheduler.plan()) is not None:
        for part in scheduler.commit(executor.step(plan)):
            number = part.sequence.request.id
            outputs[number] = part.sequence.output
            if part.finish_reason is not None:
                assert number not in reasons
                reasons[number] = part.finish_reason
    return outputs, reasons


def start(**limits):
    values = {"n_slots": 4, "max_step_tokens": 16, "max_logit_rows": 5} | limits
    scheduler = Scheduler(Limits(**values))
    return scheduler, ToyExecutor(scheduler.limits)


prompts = st.lists(st.integers(0, 49), min_size=1, max_size=40)


@given(
    requests=st.lists(st.tuples(prompts, st.integers(1, 6)), min_size=1, max_size=9),
    n_slots=st.integers(1, 4),
    max_step_tokens=st.integers(1, 20),
    pages=st.sampled_from([(0, 0), (12, 4), (46, 1)]),
)
def test_every_request_gets_the_plain_loops_output(requests, n_slots, max_step_tokens, pages):
    scheduler, executor = start(
        n_slots=n_slots, max_step_tokens=max_step_tokens, n_pages=pages[0], page_size=pages[1]
    )
    for number, (prompt, max_tokens) in enumerate(requests):
        scheduler.add(request(number, prompt, max_tokens, ignore_eos=True))
    outputs, reasons = run(scheduler, executor)
    expected = {n: toy_output(prompt, count) for n, (prompt, count) in enumerate(requests)}
    assert outputs == expected
    assert reasons == dict.fromkeys(expected, "length")
    assert (scheduler.n_running, scheduler.n_waiting) == (0, 0)


def test_decodes_come_first_and_prompts_fill_the_step():
    scheduler, executor = start(max_step_tokens=10)
    scheduler.add(request(0, [1, 2]))
    scheduler.commit(executor.step(scheduler.plan()))
    scheduler.add(request(1, range(30)))
    plan = scheduler.plan()
    assert [len(part.tokens) for part in plan.sequences] == [1, 9]


def test_a_long_prompt_leaves_half_to_those_behind_it():
    scheduler, executor = start(max_step_tokens=16)
    scheduler.add(request(0, range(40)))
    scheduler.add(request(1, range(5)))
    plan = scheduler.plan()
    assert [len(part.tokens) for part in plan.sequences] == [8, 5]
    assert [part.sample for part in plan.sequences] == [False, True]
    scheduler.commit(executor.step(plan))
    plan = scheduler.plan()
    assert [len(part.tokens) for part in plan.sequences] == [1, 15]


def test_prompts_wait_while_decodes_fill_the_step():
    scheduler, executor = start(n_slots=4, max_step_tokens=2)
    for number in range(4):
        scheduler.add(request(number, [number], max_tokens=6))
    outputs, _ = run(scheduler, executor)
    assert outputs == {number: toy_output([number], 6) for number in range(4)}
    starts = [[part.start for part in plan.sequences] for plan in executor.plans]
    assert starts == 2 * [[n, n] for n in range(6)]


def test_requests_wait_for_a_slot_and_take_a_freed_one():
    scheduler, executor = start(n_slots=1)
    scheduler.add(request(0, [1], max_tokens=2))
    scheduler.add(request(1, [2], max_tokens=2))
    scheduler.commit(executor.step(scheduler.plan()))
    assert (scheduler.n_running, scheduler.n_waiting) == (1, 1)
    outputs, _ = run(scheduler, executor)
    assert outputs == {0: toy_output([1], 2), 1: toy_output([2], 2)}


def test_admission_is_sent_once_and_knows_the_prompt_when_penalties_need_it():
    scheduler, executor = start()
    scheduler.add(request(0, [1, 2, 3]))
    scheduler.add(request(1, [4, 5], repetition_penalty=1.5))
    run(scheduler, executor)
    admissions = [admission for plan in executor.plans for admission in plan.admissions]
    assert [admission.prompt_tokens for admission in admissions] == [(), (4, 5)]


# --- endings -----------------------------------------------------------------------------------


def first_tokens(prompt, n=5):
    output = toy_output(prompt, n)
    assert len(set(output)) == n, "the toy output must not repeat here"
    return output


@pytest.mark.parametrize("by", ["eos", "stop id"])
def test_an_ending_id_stops(by):
    prompt = [3, 1, 4]
    ending = first_tokens(prompt)[2]
    params = SamplingParams(
        max_tokens=6, temperature=0, stop_token_ids=[ending] if by == "stop id" else []
    )
    scheduler, executor = start()
    scheduler.add(Request(0, tuple(prompt), params, eos_token_ids=(ending,) if by == "eos" else ()))
    outputs, reasons = run(scheduler, executor)
    assert outputs[0] == first_tokens(prompt)[:3]
    assert reasons == {0: "stop"}


def test_ignore_eos_and_min_tokens_go_on():
    prompt = [3, 1, 4]
    output = first_tokens(prompt)
    for values in ({"ignore_eos": True}, {"min_tokens": 4}):
        scheduler, executor = start()
        params = SamplingParams(max_tokens=5, temperature=0, **values)
        scheduler.add(Request(0, tuple(prompt), params, eos_token_ids=(output[2],)))
        outputs, reasons = run(scheduler, executor)
        assert outputs[0] == output[:5]
        assert reasons == {0: "length"}


def test_abort_frees_the_slot_at_once():
    scheduler, executor = start(n_slots=1, n_pages=8, page_size=4)
    scheduler.add(request(0, range(20), max_tokens=9))
    scheduler.add(request(1, [7], max_tokens=2))
    scheduler.commit(executor.step(scheduler.plan()))
    assert scheduler.finish(0)
    assert not scheduler.finish(0)
    outputs, _ = run(scheduler, executor)
    assert outputs[1] == toy_output([7], 2)


def test_abort_of_a_waiting_request():
    scheduler, executor = start(n_slots=1)
    for number in range(3):
        scheduler.add(request(number, [number]))
    assert scheduler.finish(1)
    outputs, _ = run(scheduler, executor)
    assert set(outputs) == {0, 2}


# --- pages -------------------------------------------------------------------------------------


def test_pages_are_reserved_for_the_longest_text():
    # 9 prompt tokens and 4 new ones store 12 (the last is never run): 3 pages of 4.
    scheduler, _ = start(n_pages=5, page_size=4)
    scheduler.add(request(0, range(9), max_tokens=4))
    scheduler.add(request(1, range(9), max_tokens=4))
    scheduler.plan()
    assert (scheduler.n_running, scheduler.n_waiting) == (1, 1)


def test_a_request_that_never_fits_is_rejected():
    scheduler, _ = start(n_pages=5, page_size=4)
    scheduler.add(request(0, range(10), max_tokens=11))
    with pytest.raises(ValueError, match=r"21 tokens .* holds 20; .* kv_cache_tokens to 24"):
        scheduler.add(request(1, range(10), max_tokens=12))


# --- prompts that are only read ----------------------------------------------------------------


def test_scores_cover_every_token_but_the_first_whatever_the_chunks():
    prompt = list(range(23))
    for max_step_tokens in (1, 4, 100):
        scheduler, executor = start(max_step_tokens=max_step_tokens)
        params = SamplingParams(prompt_logprobs=2)
        scheduler.add(Request(0, tuple(prompt), params, generate=False))
        scores = []
        while (plan := scheduler.plan()) is not None:
            assert all(part.top_logprobs == 2 for part in plan.sequences)
            assert not plan.admissions
            (part,) = scheduler.commit(executor.step(plan))
            scores += part.result.scores
        assert scores == [*(toy_score(token) for token in prompt[1:]), None]
        assert part.finish_reason == "length"
        assert part.sequence.output == []


def test_logits_come_in_few_rows_per_step():
    scheduler, executor = start(max_step_tokens=16, max_logit_rows=5)
    params = SamplingParams()
    scheduler.add(Request(0, tuple(range(12)), params, generate=False, return_logits=True))
    scheduler.add(Request(1, tuple(range(7)), params, generate=False, return_logits=True))
    rows = {0: [], 1: []}
    while (plan := scheduler.plan()) is not None:
        for part in scheduler.commit(executor.step(plan)):
            rows[part.sequence.request.id] += part.result.logits
    assert {number: len(found) for number, found in rows.items()} == {0: 12, 1: 7}
