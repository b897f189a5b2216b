"""Drafts beside steps that are started ahead: a text has the one or the other, as it goes."""

import pytest
from drafting_cases import Prophet
from hypothesis import given
from hypothesis import strategies as st
from toy_executor import VOCAB, AheadExecutor, toy_output

from sidewinder import SamplingParams
from sidewinder.engine.drafts import MOST_ROWS, Drafter
from sidewinder.engine.engine import Engine
from sidewinder.engine.limits import Limits
from sidewinder.engine.request import Request

DRAFTER = "sidewinder.engine.scheduler.Drafter"


class Checked(AheadExecutor):
    """Asserts that no step is started whose tokens depend on drafts."""

    def step(self, plan):
        if any(part.drafts for part in plan.sequences):
            assert not plan.ahead, "which slots come next depends on what is accepted"
            assert not plan.started, "drafts follow known tokens"
        return super().step(plan)


def engine_of(**limits):
    values = {"n_slots": 3, "max_step_tokens": 16, "max_logit_rows": 5}
    values |= {"n_draft_slots": 4, "max_drafts": 4, "drafts_beside_prompts": False}
    executor = Checked(Limits(**values | limits))
    return Engine(executor, executor.limits, looks_ahead=True), executor


def request(number, prompt, n_tokens):
    params = SamplingParams(max_tokens=n_tokens, temperature=0)
    return Request(number, tuple(prompt), params)


prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30)


@given(
    requests=st.lists(st.tuples(prompts, st.integers(1, 40)), min_size=1, max_size=8),
    pages=st.sampled_from([(0, 0), (40, 4)]),
    n_draft_slots=st.sampled_from([0, 1, 4]),
    arrive=st.integers(1, 4),
)
def test_every_request_gets_the_plain_loops_output(requests, pages, n_draft_slots, arrive):
    engine, executor = engine_of(n_pages=pages[0], page_size=pages[1], n_draft_slots=n_draft_slots)
    texts = [[*prompt, *toy_output(prompt, n_tokens)] for prompt, n_tokens in requests]
    waiting, outputs = list(enumerate(requests)), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DRAFTER, Prophet(texts, VOCAB))
        while waiting or engine.has_work:
            for number, (prompt, n_tokens) in waiting[:arrive]:
                engine.add(request(number, prompt, n_tokens))
            waiting = waiting[arrive:]
            for increment in engine.step():
                if increment.output is not None:
                    outputs[increment.request_id] = increment.output.token_ids
    assert outputs == {n: toy_output(*each) for n, each in enumerate(requests)}
    free = engine._scheduler._free_slots
    assert sorted(free) == list(range(3 + n_draft_slots)), "slots got lost"
    for plan in executor.plans:
        drafting = [part.drafts for part in plan.sequences if part.drafts]
        assert not drafting or all(part.is_single for part in plan.sequences), "beside a prompt"


class Waking(Drafter):
    """Has guesses, right ones, from the tenth token of an answer on."""

    def draft(self, most):
        text = self._text
        return tuple(toy_output(text, most)) if len(text) >= 11 else ()


def test_texts_that_do_not_repeat_themselves_are_started_ahead_until_they_do(monkeypatch):
    monkeypatch.setattr(DRAFTER, Waking)
    engine, executor = engine_of()
    engine.add(request(0, [3], 40))
    (output,) = engine.run()
    assert output.token_ids == toy_output([3], 40)
    drafted = [any(part.drafts for part in plan.sequences) for plan in executor.plans]
    # When the tenth token was known, the step that draws the eleventh was on its way; from there on
    # there are drafts only, five tokens a step.
    assert executor.n_started == 9
    assert drafted == [False] * 2 + [True] * 6, "but for steps that were started"


def test_without_rows_or_slots_for_drafts_guesses_hold_nothing_up(monkeypatch):
    monkeypatch.setattr(Waking, "draft", lambda self, most: tuple(toy_output(self._text, most)))
    monkeypatch.setattr(DRAFTER, Waking)
    engine, executor = engine_of(n_slots=MOST_ROWS, n_draft_slots=2)
    for number in range(MOST_ROWS):
        engine.add(request(number, [number], 9))
    assert [o.token_ids for o in engine.run()] == [toy_output([n], 9) for n in range(MOST_ROWS)]
    assert executor.n_started == 7
    engine, executor = engine_of(n_slots=1, n_draft_slots=0)
    engine.add(request(0, [3], 9))
    assert engine.run()[0].token_ids == toy_output([3], 9)
    assert executor.n_started == 7
