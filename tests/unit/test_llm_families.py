"""`LLM` over every family, end to end, against transformers."""

import math

import pytest
import torch
from llm_cases import GREEDY, PROMPTS, make_model

from sidewinder import LLM, SamplingParams
from sidewinder.testing import TINY, assert_close

TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def poison():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIDEWINDER_POISON", "1")
        yield


@pytest.fixture(scope="module", params=TINY)
def family(request, tmp_path_factory):
    """(folder, oracle, LLM) of one family; three slots and seven tokens per step."""
    folder = tmp_path_factory.mktemp(request.param)
    oracle = make_model(request.param, folder)
    with LLM(folder, dtype="float32", max_step_tokens=7, max_batch_size=3) as llm:
        yield folder, oracle, llm


@torch.no_grad()
def oracle_logits(oracle, tokens):
    return oracle(torch.tensor([tokens]), use_cache=False).logits[0].float()


def plain_greedy(oracle, prompt, n_tokens):
    """Greedy tokens from whole forwards, and whether each is away from a near-tie."""
    tokens, certain = list(prompt), []
    for _ in range(n_tokens):
        logits = oracle_logits(oracle, tokens)[-1]
        best, second = logits.topk(2).values
        certain.append(bool(best - second > 2 * TOLERANCE * logits.abs().max()))
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :], certain


def test_greedy_equals_a_plain_loop(family):
    _, oracle, llm = family
    outputs = llm.generate([*PROMPTS, PROMPTS[0]], GREEDY)
    assert outputs[3].token_ids == outputs[0].token_ids
    for prompt, output in zip(PROMPTS, outputs, strict=False):
        expected, certain = plain_greedy(oracle, prompt, GREEDY.max_tokens)
        assert sum(certain) > len(certain) // 2, "hardly any token is certain; the test is void"
        n_sure = certain.index(False) if False in certain else len(certain)
        assert output.token_ids[:n_sure] == expected[:n_sure]
        assert len(output.token_ids) == GREEDY.max_tokens
        assert output.finish_reason == "length"


def test_logits_equal_transformers(family):
    _, oracle, llm = family
    for prompt, logits in zip(PROMPTS, llm.logits(PROMPTS), strict=True):
        assert (logits.dtype, logits.device.type) == (torch.float32, "cpu")
        assert_close(f"logits of {len(prompt)}", oracle_logits(oracle, prompt), logits, TOLERANCE)


def test_streamed_logits_are_the_same_rows_in_blocks(family):
    _, _, llm = family
    blocks = list(llm.stream_logits(PROMPTS[1]))
    assert len(blocks) > 1
    (whole,) = llm.logits([PROMPTS[1]])
    torch.testing.assert_close(torch.cat(blocks), whole)


def test_scores_equal_transformers(family):
    _, oracle, llm = family
    for prompt, scores in zip(PROMPTS, llm.score(PROMPTS), strict=True):
        logprobs = torch.log_softmax(oracle_logits(oracle, prompt), dim=-1)
        expected = logprobs[torch.arange(len(prompt) - 1), prompt[1:]]
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)
    score = llm.perplexity(PROMPTS[1])
    total = float(llm.score([PROMPTS[1]])[0].double().sum())
    assert score.n_predicted == len(PROMPTS[1]) - 1
    assert score.logprob == pytest.approx(total, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(-total / score.n_predicted), rel=1e-4)


def test_logprobs_equal_transformers(family):
    _, oracle, llm = family
    params = SamplingParams(
        max_tokens=5, temperature=0.9, seed=3, logprobs=4, prompt_logprobs=2, ignore_eos=True
    )
    (output,) = llm.generate([PROMPTS[1]], params)
    tokens = output.prompt_token_ids + output.token_ids
    expected = torch.log_softmax(oracle_logits(oracle, tokens), dim=-1)
    reports = output.prompt_logprobs + output.logprobs
    assert reports[0] is None
    for position in range(1, len(tokens)):
        row, report = expected[position - 1], reports[position]
        assert report.token_id == tokens[position]
        assert report.logprob == pytest.approx(float(row[report.token_id]), rel=1e-3, abs=1e-3)
        n_top = 2 if position < len(output.prompt_token_ids) else 4
        top = [logprob for _, logprob in report.top]
        assert top == pytest.approx(row.topk(n_top).values.tolist(), rel=1e-3, abs=1e-3)


def test_seeded_text_does_not_depend_on_the_batch_or_the_chunks(family):
    folder, _, llm = family
    params = [
        SamplingParams(max_tokens=10, temperature=1.0, seed=1),
        SamplingParams(max_tokens=14, temperature=0.7, top_p=0.9, seed=2, frequency_penalty=0.5),
        SamplingParams(max_tokens=6, temperature=1.2, top_k=20, seed=3),
        SamplingParams(max_tokens=9, temperature=1.0, repetition_penalty=1.2, seed=1),
    ]
    prompts = [PROMPTS[1], PROMPTS[0], PROMPTS[2], PROMPTS[1][:11]]
    together = [output.token_ids for output in llm.generate(prompts, params)]
    alone = [llm.generate([p], own)[0].token_ids for p, own in zip(prompts, params, strict=True)]
    assert together == alone
    for max_step_tokens in (1, 2048):
        with LLM(folder, dtype="float32", max_step_tokens=max_step_tokens) as other:
            assert [output.token_ids for output in other.generate(prompts, params)] == together


def test_bfloat16_runs_near_float32(family):
    folder, oracle, _ = family
    with LLM(folder, dtype="bfloat16", state_dtype="bfloat16") as llm:
        assert llm.report()["dtype"] == "bfloat16"
        (logits,) = llm.logits([PROMPTS[1]])
        assert_close("bfloat16", oracle_logits(oracle, PROMPTS[1]), logits, 0.1)
        assert len(llm.generate([PROMPTS[1]], GREEDY)[0].token_ids) == GREEDY.max_tokens
