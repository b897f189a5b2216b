"""Speculation on Triton's kernels: drafts change how many steps a text takes, and nothing else."""

from dataclasses import replace

import pytest
import torch
from speculation_cases import MOST, SIZES, drafting, engine_of, save_short

from sidewinder import LLM, SamplingParams, StructuredOutput
from sidewinder.engine.drafts import Drafter
from sidewinder.engine.plan import PENDING
from sidewinder.state.pool import POISON_VARIABLE
from sidewinder.testing import save_tiny, save_tokenizer, tiny_oracle

pytestmark = pytest.mark.usefixtures("unchecked_integers")

PROMPTS = [[5, 80, 12, 44, 7], [9]]
GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=2)
RANDOM = SamplingParams(max_tokens=8, temperature=0.9, top_k=20, seed=3, ignore_eos=True)


def answers(llm):
    """Of prompts, greedily with logprobs and at random, and of a talk that goes on behind an answer
    and may be started ahead."""
    outputs = llm.generate(PROMPTS, [GREEDY, RANDOM])
    talk = [*PROMPTS[0], *outputs[0].token_ids, 4]
    return outputs + llm.generate([talk], replace(RANDOM, max_tokens=12))


def assert_same(expected, found):
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        pairs = zip(ours.logprobs or (), theirs.logprobs or (), strict=True)
        assert all(one.logprob == pytest.approx(other.logprob, abs=1e-4) for one, other in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "recorded", "tp"),
    [
        ("mamba", True, 1),
        ("mamba", True, 2),
        ("falcon_mamba", True, 1),
        ("mamba2", True, 1),
        ("zamba", True, 1),
        ("bamba", True, 1),
        ("bamba", False, 1),
        ("bamba", True, 2),
    ],
)
def test_texts_are_those_without_drafts(family, recorded, tp, tmp_path, monkeypatch):
    monkeypatch.setenv(POISON_VARIABLE, "1")
    folder = save_short(family, tmp_path)
    with LLM(folder, device="cpu", dtype="float32", max_batch_size=4) as plain:
        expected = answers(plain)
    texts = [[*each.prompt_token_ids, *each.token_ids] for each in expected]
    with drafting(texts), engine_of(folder, recorded, tp, speculate=MOST) as (llm, steps):
        found = answers(llm)
        counters = llm.counters
    assert_same(expected, found)
    assert counters.draft_tokens > counters.accepted_tokens > 4
    kinds = {(len(parts), bool(parts[0].drafts), parts[0].tokens[0] == PENDING) for parts in steps}
    if recorded:
        assert {(2, True, False), (1, True, False), (1, False, True)} <= kinds
    else:
        assert not kinds


def test_a_form_s_own_tokens_are_drafted(tmp_path):
    """Draws with masks come behind the graph; masks of drafts are those behind each."""
    changes = {"num_hidden_layers": 1, "vocab_size": 287, "tie_word_embeddings": False}
    folder = save_tokenizer(save_tiny("mamba", tmp_path, **changes))
    form = StructuredOutput(choice=("first and second", "first or second"))
    params = replace(RANDOM, max_tokens=20, structured_output=form, ignore_eos=False)
    with LLM(folder, device="cpu", dtype="float32") as plain:
        (expected,) = plain.generate(["a"], params)
    with engine_of(folder, speculate=MOST) as (llm, steps):
        (found,) = llm.generate(["a"], params)
    assert found.token_ids == expected.token_ids
    assert found.metrics.accepted_tokens > 3
    assert any(parts[0].draft_allowed for parts in steps)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_a_draft_that_overflows_matters_if_it_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv(POISON_VARIABLE, "1")
    folder = save_short("mamba2", tmp_path)
    with LLM(folder, device="cpu", dtype="float32") as plain:
        (expected,) = plain.generate([PROMPTS[0]], GREEDY)
    broken = min(set(range(90)) - {*PROMPTS[0], *expected.token_ids})
    oracle = tiny_oracle("mamba2", **SIZES["mamba2"])
    oracle.get_input_embeddings().weight.data[broken] = torch.inf
    oracle.save_pretrained(folder)
    monkeypatch.setattr(Drafter, "draft", lambda *_: (broken, 9))
    with engine_of(folder, speculate=2) as (llm, _):
        (found,) = llm.generate([PROMPTS[0]], GREEDY)
    assert found.metrics.draft_tokens > 10
    assert_same([expected], [found])

    second = expected.token_ids[1]
    assert second not in (*PROMPTS[0], expected.token_ids[0])
    oracle.get_input_embeddings().weight.data[second] = torch.inf
    oracle.save_pretrained(folder)
    monkeypatch.setattr(Drafter, "draft", lambda *_: (second,))
    with (
        engine_of(folder, speculate=1) as (llm, _),
        pytest.raises(RuntimeError, match=r"logits hold NaN or infinity \(row 1 of 2\)"),
    ):
        llm.generate([PROMPTS[0]], GREEDY)
