"""Speculation on Triton's kernels: drafts change how many steps a text takes, and nothing else."""

from dataclasses import replace

import pytest
from speculation_cases import MOST, drafting, engine_of, save_short

from sidewinder import LLM, SamplingParams
from sidewinder.state.pool import POISON_VARIABLE

PROMPTS = [[5, 80, 12, 44, 7], [9]]
GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
RANDOM = SamplingParams(max_tokens=8, temperature=0.9, top_k=20, seed=3, ignore_eos=True)


def answers(llm):
    """Of prompts, greedily and at random, and of a talk that goes on behind an answer, with
    logprobs."""
    outputs = llm.generate(PROMPTS, [GREEDY, RANDOM])
    talk = [*PROMPTS[0], *outputs[0].token_ids, 4]
    return outputs + llm.generate([talk], replace(RANDOM, logprobs=2))


def assert_same(expected, found):
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        pairs = zip(ours.logprobs or (), theirs.logprobs or (), strict=True)
        assert all(one.logprob == pytest.approx(other.logprob, abs=1e-4) for one, other in pairs)


@pytest.mark.parametrize(
    ("family", "recorded", "tp"),
    [
        ("mamba", True, 1),
        ("mamba", False, 1),
        ("mamba", True, 2),
        ("falcon_mamba", True, 1),
        ("mamba2", True, 1),
        ("mamba2", False, 2),
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
    with drafting(texts), engine_of(folder, recorded, tp, speculate=MOST) as (llm, recorder):
        found = answers(llm)
        counters = llm.counters
    assert_same(expected, found)
    assert counters.draft_tokens > counters.accepted_tokens > 6
    if recorded:
        assert recorder.recorded >= 3 * tp
