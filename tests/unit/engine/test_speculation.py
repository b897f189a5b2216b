"""Drafts change how many steps a text takes, and nothing else."""

from dataclasses import replace

import pytest
import torch
from drafting_cases import Prophet
from hypothesis import given
from hypothesis import strategies as st
from toy_executor import VOCAB, ToyExecutor, toy_output, toy_score

from sidewinder import LLM, SamplingParams
from sidewinder.engine.engine import Engine
from sidewinder.engine.limits import Limits
from sidewinder.engine.request import Request
from sidewinder.testing import TINY, save_tiny, save_tokenizer, tiny_oracle

EOS = 7
MOST = 5


def engine_of(**limits):
    values = {"n_slots": 3, "max_step_tokens": 16, "max_logit_rows": 5}
    values |= {"n_draft_slots": 2, "max_drafts": MOST}
    executor = ToyExecutor(Limits(**values | limits))
    return Engine(executor, executor.limits), executor


def expected(prompt, n_tokens):
    """What the toy model writes until its end token."""
    output = toy_output(prompt, n_tokens)
    return output[: output.index(EOS) + 1] if EOS in output else output


prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30)


@given(
    requests=st.lists(st.tuples(prompts, st.integers(1, 40)), min_size=1, max_size=8),
    pages=st.sampled_from([(0, 0), (40, 4)]),
    sizes=st.sampled_from([(3, 2, 16), (1, 5, 16), (4, 0, 16), (2, 5, 3), (1, 3, 1)]),
    arrive=st.integers(1, 4),
)
def test_every_request_gets_the_plain_loops_output(requests, pages, sizes, arrive):
    n_slots, n_draft_slots, max_step_tokens = sizes
    engine, executor = engine_of(
        n_pages=pages[0], page_size=pages[1], n_slots=n_slots, n_draft_slots=n_draft_slots,
        max_step_tokens=max_step_tokens,
    )  # fmt: skip
    texts = [[*prompt, *toy_output(prompt, n_tokens)] for prompt, n_tokens in requests]
    waiting = list(enumerate(requests))
    outputs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidewinder.engine.scheduler.Drafter", Prophet(texts, VOCAB))
        while waiting or engine.has_work:
            for number, (prompt, n_tokens) in waiting[:arrive]:
                params = SamplingParams(max_tokens=n_tokens, temperature=0, logprobs=0)
                engine.add(Request(number, tuple(prompt), params, eos_token_ids=(EOS,)))
            waiting = waiting[arrive:]
            for increment in engine.step():
                if increment.output is not None:
                    outputs[increment.request_id] = increment.output
    for number, each in enumerate(requests):
        assert outputs[number].token_ids == expected(*each)
        assert outputs[number].logprobs == [toy_score(t) for t in outputs[number].token_ids]
    assert engine.n_running == 0
    free = engine._scheduler._free_slots
    assert sorted(free) == list(range(n_slots + n_draft_slots)), "slots got lost"
    n_run = sum(len(p.tokens) - len(p.drafts) for plan in executor.plans for p in plan.sequences)
    assert n_run + engine.counters.accepted_tokens >= sum(len(e[0]) for e in requests)


def test_accepted_drafts_save_steps(monkeypatch):
    text = [3, *toy_output([3], 40)]
    monkeypatch.setattr("sidewinder.engine.scheduler.Drafter", Prophet([text], VOCAB))
    engine, executor = engine_of()
    engine.add(Request(0, (3,), SamplingParams(max_tokens=40, temperature=0)))
    (output,) = engine.run()
    assert output.token_ids == text[1:]
    assert len(executor.plans) < 30
    metrics, counters = output.metrics, engine.counters
    assert metrics.draft_tokens == counters.draft_tokens > metrics.accepted_tokens > 5
    assert metrics.accepted_tokens == counters.accepted_tokens == 40 - len(executor.plans)
    assert counters.decode_tokens == 39


def test_prompts_go_on_beside_drafts(monkeypatch):
    text = [3, *toy_output([3], 200)]
    monkeypatch.setattr("sidewinder.engine.scheduler.Drafter", Prophet([text], VOCAB))
    engine, _ = engine_of(max_step_tokens=2)
    engine.add(Request(0, (3,), SamplingParams(max_tokens=200, temperature=0)))
    engine.step()
    engine.add(Request(1, tuple(range(20)), SamplingParams(max_tokens=1, temperature=0)))
    for _ in range(25):
        engine.step()
    assert engine.n_running == 1, "the prompt of 20 tokens has run"


@pytest.mark.parametrize(
    "values", [{"repetition_penalty": 1.5}, {"min_tokens": 30}, {"logit_bias": {3: 1.0}}], ids=str
)
def test_nothing_is_drafted_where_draws_depend_on_each_other(values, monkeypatch):
    text = [3, *toy_output([3], 30)]
    monkeypatch.setattr("sidewinder.engine.scheduler.Drafter", Prophet([text], VOCAB))
    engine, _ = engine_of()
    params = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True, **values)
    engine.add(Request(0, (3,), params))
    engine.run()
    assert engine.counters.draft_tokens == 0


def test_an_abort_while_drafts_run_loses_no_slot(monkeypatch):
    text = [3, *toy_output([3], 40)]
    monkeypatch.setattr("sidewinder.engine.scheduler.Drafter", Prophet([text], VOCAB))
    engine, executor = engine_of()
    scheduler = engine._scheduler
    engine.add(Request(0, (3,), SamplingParams(max_tokens=40, temperature=0)))
    for _ in range(40):
        plan = scheduler.plan()
        results = executor.step(plan)
        if len(results.sequences[0].tokens) > 1:
            break
        scheduler.commit(results)
    assert scheduler.finish(0)
    assert scheduler.commit(results) == []
    assert sorted(scheduler._free_slots) == list(range(5))


PROMPTS = [[5, 80, 12, 44, 7], [9], list(range(30, 50))]
PARAMS = {
    "greedy": SamplingParams(max_tokens=24, temperature=0, logprobs=2),
    "random": SamplingParams(max_tokens=24, temperature=0.9, top_k=20, seed=3),
    "stop token": SamplingParams(max_tokens=24, temperature=1.0, seed=1, stop_token_ids=(8, 17)),
}


def answers(folder, tp=1, **options):
    """Tokens and logprobs of all params: of prompts, of the same again, of talks that go on."""
    found, n_accepted = [], 0
    options = {"dtype": "float32", "max_batch_size": 4, "kv_cache_tokens": 1024} | options
    with LLM(folder, device="cpu", tp=tp, **options) as llm:
        for params in PARAMS.values():
            rounds = [llm.generate(PROMPTS, params) for _ in range(2)]
            talks = [[*p, *a.token_ids, 4, 9] for p, a in zip(PROMPTS, rounds[0], strict=True)]
            rounds.append(llm.generate(talks, params))
            found += [
                (each.prompt_token_ids, each.token_ids, each.logprobs) for r in rounds for each in r
            ]
        n_accepted = llm.counters.accepted_tokens
    return found, n_accepted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", TINY)
def test_texts_and_kept_states_of_models(family, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("SIDEWINDER_POISON", "1")
    folder = save_tiny(family, tmp_path)
    plain, _ = answers(folder, dtype=dtype)
    texts = [[*prompt, *tokens] for prompt, tokens, _ in plain]
    monkeypatch.setattr("sidewinder.engine.scheduler.Drafter", Prophet(texts, 90))
    drafted, n_accepted = answers(folder, dtype=dtype, speculate=MOST)
    assert drafted == plain
    assert n_accepted > 100, "hardly anything was accepted; the test is void"


@pytest.mark.parametrize("all_reduce", ["exact", "int8"])
@pytest.mark.parametrize("family", ["mamba", "zamba"])
def test_ranks(family, all_reduce, tmp_path, monkeypatch):
    folder = save_tiny(family, tmp_path)
    plain, _ = answers(folder, tp=2, all_reduce=all_reduce)
    texts = [[*prompt, *tokens] for prompt, tokens, _ in plain]
    monkeypatch.setattr("sidewinder.engine.scheduler.Drafter", Prophet(texts, 90))
    drafted, n_accepted = answers(folder, tp=2, all_reduce=all_reduce, speculate=MOST)
    assert [each[:2] for each in drafted] == [each[:2] for each in plain]
    assert n_accepted > 100


def test_one_sequence_at_a_time_has_slots_for_drafts(tmp_path, monkeypatch):
    folder = save_tiny("mamba2", tmp_path)
    plain, _ = answers(folder, max_batch_size=1)
    texts = [[*prompt, *tokens] for prompt, tokens, _ in plain]
    monkeypatch.setattr("sidewinder.engine.scheduler.Drafter", Prophet(texts, 90))
    drafted, n_accepted = answers(folder, max_batch_size=1, speculate=MOST)
    assert drafted == plain
    assert n_accepted > 100


@pytest.mark.parametrize("as_text", [False, True])
def test_predictions(as_text, tmp_path):
    folder = save_tokenizer(save_tiny("mamba", tmp_path, vocab_size=287, tie_word_embeddings=False))
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=3, ignore_eos=True)
    with LLM(folder, device="cpu", dtype="float32", speculate=MOST, state_cache_bytes=0) as llm:
        (plain,) = llm.generate([[5, 80, 12]], params)
        before = llm.counters.steps
        prediction = plain.text if as_text else plain.token_ids
        (found,) = llm.generate([[5, 80, 12]], replace(params, prediction=prediction))
        assert found.token_ids == plain.token_ids
        # A text's tokens may be cut in another way than they were drawn.
        assert found.metrics.accepted_tokens >= (10 if as_text else 40)
        assert llm.counters.steps - before == 60 - found.metrics.accepted_tokens
        with pytest.raises(ValueError, match="prediction: token id 287 at position 1"):
            llm.generate([[5]], replace(params, prediction=(5, 287)))
        with pytest.raises(ValueError, match="prediction=5 is not a list"):
            replace(params, prediction=5)


def test_a_stop_string_ends_the_tokens_where_it_would(tmp_path):
    folder = save_tokenizer(save_tiny("mamba", tmp_path, vocab_size=287, tie_word_embeddings=False))
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=3, ignore_eos=True, logprobs=0)
    options = {"device": "cpu", "dtype": "float32"}
    found, cached = [], []
    with LLM(folder, **options) as llm:
        (whole,) = llm.generate([[5, 80, 12]], params)
        stopping = replace(params, stop=whole.text[20:23], prediction=whole.token_ids)
    for drafts in (0, MOST):
        with LLM(folder, speculate=drafts, **options) as llm:
            (answer,) = llm.generate([[5, 80, 12]], stopping)
            talk = [5, 80, 12, *answer.token_ids, 4, 9]
            (following,) = llm.generate([talk], SamplingParams(max_tokens=1))
        found.append(answer)
        cached.append(following.metrics.cached_tokens)
    plain, drafted = found
    assert drafted.metrics.accepted_tokens > 3
    assert 3 < len(plain.token_ids) < 60
    for name in ("token_ids", "text", "logprobs", "finish_reason"):
        assert getattr(plain, name) == getattr(drafted, name)
    assert drafted.metrics.output_tokens == len(plain.token_ids)
    # Accepted tokens behind the stop string count for nothing, and the state is without them.
    assert drafted.metrics.accepted_tokens < len(plain.token_ids)
    assert cached == [3 + len(plain.token_ids) - 1] * 2


@pytest.mark.parametrize("family", ["mamba2", "bamba"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_that_overflows_matters_if_it_is_accepted(
    family, temperature, tmp_path, monkeypatch
):
    monkeypatch.setenv("SIDEWINDER_POISON", "1")
    folder = save_tiny(family, tmp_path)
    params = SamplingParams(max_tokens=20, temperature=temperature, seed=3, logprobs=1)
    options = {"device": "cpu", "dtype": "float32", "kv_cache_tokens": 64}
    with LLM(folder, **options) as llm:
        (plain,) = llm.generate([[5, 80, 12]], params)
    broken = min(set(range(100)) - {5, 80, 12, *plain.token_ids})
    oracle = tiny_oracle(family)
    oracle.get_input_embeddings().weight.data[broken] = torch.inf
    oracle.save_pretrained(folder)
    monkeypatch.setattr("sidewinder.engine.scheduler.Drafter.draft", lambda *_: (broken, 9))
    with LLM(folder, speculate=2, **options) as llm:
        (drafted,) = llm.generate([[5, 80, 12]], params)
    assert drafted.metrics.draft_tokens > 30
    assert (drafted.token_ids, drafted.logprobs) == (plain.token_ids, plain.logprobs)

    second = plain.token_ids[1]
    assert second not in (5, 80, 12, plain.token_ids[0])
    oracle.get_input_embeddings().weight.data[second] = torch.inf
    oracle.save_pretrained(folder)
    monkeypatch.setattr("sidewinder.engine.scheduler.Drafter.draft", lambda *_: (second,))
    with (
        LLM(folder, speculate=1, **options) as llm,
        pytest.raises(RuntimeError, match=r"logits hold NaN or infinity \(row 1 of 2\)"),
    ):
        llm.generate([[5, 80, 12]], params)
