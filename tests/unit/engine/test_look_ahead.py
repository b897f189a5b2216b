"""Steps started before the tokens of those before them are known change no output."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_executor import AheadExecutor, next_state, toy_output

from sidewinder import LLM, SamplingParams
from sidewinder.engine import runner as runner_module
from sidewinder.engine.engine import Engine
from sidewinder.engine.limits import Limits
from sidewinder.engine.recorders import EagerRecorder
from sidewinder.engine.request import Request
from sidewinder.testing import TINY, save_tiny

EOS = 7


def engine_of(**limits):
    values = {"n_slots": 3, "max_step_tokens": 16, "max_logit_rows": 5} | limits
    executor = AheadExecutor(Limits(**values))
    return Engine(executor, executor.limits, looks_ahead=True), executor


def expected(prompt, n_tokens):
    """What the toy model writes until its end token."""
    output = toy_output(prompt, n_tokens)
    return output[: output.index(EOS) + 1] if EOS in output else output


prompts = st.lists(st.integers(0, 49), min_size=1, max_size=30)


@given(
    requests=st.lists(st.tuples(prompts, st.integers(1, 40)), min_size=1, max_size=8),
    pages=st.sampled_from([(0, 0), (40, 4)]),
    arrive=st.integers(1, 4),
)
def test_every_request_gets_the_plain_loops_output(requests, pages, arrive):
    engine, _ = engine_of(n_pages=pages[0], page_size=pages[1])
    waiting = list(enumerate(requests))
    outputs = {}
    while waiting or engine.has_work:
        for number, (prompt, n_tokens) in waiting[:arrive]:
            params = SamplingParams(max_tokens=n_tokens, temperature=0)
            engine.add(Request(number, tuple(prompt), params, eos_token_ids=(EOS,)))
        waiting = waiting[arrive:]
        for increment in engine.step():
            if increment.output is not None:
                outputs[increment.request_id] = increment.output.token_ids
    assert outputs == {n: expected(*each) for n, each in enumerate(requests)}
    assert engine.n_running == 0


def test_a_long_decode_is_started_ahead_and_an_abort_drops_it():
    engine, executor = engine_of()
    params = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True)
    for number in range(2):
        engine.add(Request(number, (3, number), params))
    for _ in range(6):
        engine.step()
    assert executor.n_started >= 4
    assert engine.abort(0)
    outputs = engine.run()
    assert [output.token_ids for output in outputs] == [toy_output((3, 1), 30)]
    engine.add(Request(5, (4, 4), params))
    assert engine.run()[0].token_ids == toy_output((4, 4), 30), "the slot is used again"


@pytest.mark.parametrize(
    "values",
    [{"logprobs": 1}, {"repetition_penalty": 1.5}, {"min_tokens": 29}, {"logit_bias": {3: 1.0}}],
    ids=str,
)
def test_what_the_host_must_see_is_not_started_ahead(values):
    engine, executor = engine_of()
    params = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True, **values)
    engine.add(Request(0, (3,), params))
    engine.run()
    assert executor.n_started == 0


def test_a_state_kept_at_the_end_holds_what_was_run_ahead():
    state = 0
    for token in (3, *toy_output((3,), 4)):
        state = next_state(state, token)
    engine, executor = engine_of()
    saved = []
    engine.cache.save = lambda _, tokens, slot, __: saved.append((tokens, executor.slots[slot]))
    params = SamplingParams(max_tokens=9, temperature=0, stop_token_ids=(toy_output((3,), 4)[-1],))
    engine.add(Request(0, (3,), params))
    engine.step()
    sequence = next(iter(engine._scheduler._running.values()))
    sequence.boundaries = {1000}  # states of this sequence are kept
    engine.run()
    tokens, (value, n_tokens) = saved[-1]
    assert tokens == (3, *toy_output((3,), 4)), "the token drawn last was run, too"
    assert (value, n_tokens) == (state, len(tokens))


PROMPTS = [[5, 80, 12, 44, 7], [9], list(range(30, 50))]
PARAMS = {
    "greedy": SamplingParams(max_tokens=24, temperature=0),
    "random": SamplingParams(max_tokens=24, temperature=0.9, top_k=20, seed=3),
    "stop token": SamplingParams(max_tokens=24, temperature=1.0, seed=1, stop_token_ids=(8, 17)),
}


@pytest.mark.parametrize("family", TINY)
def test_texts_of_models_and_of_their_kept_states(family, tmp_path, monkeypatch):
    folder = save_tiny(family, tmp_path)
    texts = {}
    for way in ("plain", "ahead"):
        if way == "ahead":
            monkeypatch.setattr(runner_module, "recorder_for", lambda *_: EagerRecorder())
        with LLM(
            folder, dtype="float32", device="cpu", max_batch_size=4, kv_cache_tokens=1024
        ) as llm:
            assert llm.runner_report.looks_ahead == (way == "ahead")
            rounds = [PROMPTS, PROMPTS]
            found = []
            for params in PARAMS.values():
                # The second time prompts go on from states that the first one kept.
                answers = [llm.generate(prompts, params) for prompts in rounds]
                talks = [[*p, *a.token_ids, 4, 9] for p, a in zip(PROMPTS, answers[0], strict=True)]
                answers.append(llm.generate(talks, params))
                found.append([[output.token_ids for output in each] for each in answers])
            texts[way] = found
    assert texts["ahead"] == texts["plain"]
