"""One rank's runner: what a step gives back, and state that moves between slots."""

import pytest
import torch

from sidewinder.checkpoint.random import random_shard
from sidewinder.collectives.base import SingleRank
from sidewinder.config import EngineConfig, load_model_config
from sidewinder.engine import runner as runner_module
from sidewinder.engine.plan import Admission, SequenceStep, StepPlan
from sidewinder.engine.runner import build_runner
from sidewinder.parallel.group import SINGLE
from sidewinder.sampling import SamplingParams
from sidewinder.state.cache.ops import Drop, Restore, Save
from sidewinder.testing import TINY, run_ranks, save_tiny

TOKENS = (5, 80, 12, 44, 7, 61, 3)
GREEDY = SamplingParams(temperature=0, logprobs=1)


@pytest.fixture(scope="module", params=TINY)
def folder(request, tmp_path_factory):
    return save_tiny(request.param, tmp_path_factory.mktemp(request.param))


def start(folder, collectives=None, **options):
    values = {"device": "cpu", "dtype": "float32", "threads": 1, "max_batch_size": 4} | options
    collectives = collectives or SingleRank(SINGLE)
    engine = EngineConfig(str(folder), **values)
    return build_runner(engine, load_model_config(folder), collectives.tp, collectives)


@pytest.fixture(scope="module")
def runner(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIDEWINDER_POISON", "1")
        yield start(folder, kv_cache_tokens=160)


def part(runner, slot, tokens, start, **values):
    kv = runner.pool.kv
    n_pages = -(-(start + len(tokens)) // kv.page_size) if kv is not None else 0
    pages = tuple(2 * slot + n for n in range(n_pages))
    return SequenceStep(slot, tuple(tokens), start, pages, **values)


def step(runner, *parts, admissions=()):
    return runner.step(StepPlan(parts, tuple(admissions))).sequences


def last_logits(runner, slot, tokens, start):
    (result,) = step(runner, part(runner, slot, tokens, start, return_logits=True))
    return torch.from_numpy(result.logits)[-1]


def test_a_step_draws_scores_and_returns_logits(runner):
    admission = Admission(1, GREEDY, 0, ())
    drawn, scored, quiet = step(
        runner,
        part(runner, 1, TOKENS, 0, sample=True),
        part(runner, 0, TOKENS, 0, score=(*TOKENS[1:], -1), top_logprobs=2, return_logits=True),
        part(runner, 2, TOKENS[:3], 0),
        admissions=[admission],
    )
    assert scored.logits.shape == (len(TOKENS), runner.model.config.vocab_size)
    logprobs = torch.log_softmax(torch.from_numpy(scored.logits), dim=-1)
    assert drawn.tokens == [int(logprobs[-1].argmax())]
    (report,) = drawn.logprobs
    assert report.logprob == pytest.approx(float(logprobs[-1].max()), abs=1e-4)
    assert scored.scores[-1] is None
    for row, score in enumerate(scored.scores[:-1]):
        assert score.token_id == TOKENS[row + 1]
        assert score.logprob == pytest.approx(float(logprobs[row, score.token_id]), abs=1e-4)
        assert len(score.top) == 2
    assert (quiet.tokens, quiet.logits, quiet.scores) == ([], None, [])


def test_rows_are_read_in_blocks(runner, monkeypatch):
    (whole,) = step(runner, part(runner, 0, TOKENS, 0, score=TOKENS, return_logits=True))
    monkeypatch.setattr(runner, "_block_rows", 2)
    largest, logits_of = [], runner.model.logits
    monkeypatch.setattr(
        runner.model, "logits", lambda hidden: largest.append(len(hidden)) or logits_of(hidden)
    )
    (blocks,) = step(runner, part(runner, 0, TOKENS, 0, score=TOKENS, return_logits=True))
    assert max(largest) == 2
    torch.testing.assert_close(torch.from_numpy(blocks.logits), torch.from_numpy(whole.logits))
    assert [score.token_id for score in blocks.scores] == list(TOKENS)


def test_operations_come_before_the_sequences(runner):
    """A hybrid's pages too: slot 3 resumes in pages of its own, with a partly filled one copied."""
    step(runner, part(runner, 0, TOKENS[:4], 0))
    kv = runner.pool.kv
    copied = (0, 6) if kv is not None else None
    expected = last_logits(runner, 0, TOKENS[4:], 4)
    step(runner, part(runner, 0, TOKENS[:4], 0))
    plan = StepPlan(
        (part(runner, 3, TOKENS[4:], 4, return_logits=True),),
        state_ops=(Save(7, 0), Restore(7, 3, copied=copied), Drop(7)),
    )
    (result,) = runner.step(plan).sequences
    assert torch.equal(torch.from_numpy(result.logits)[-1], expected)
    assert len(runner.store) == 0


def test_a_step_may_only_move_states(runner):
    step(runner, part(runner, 0, TOKENS[:4], 0))
    assert runner.step(StepPlan((), state_ops=(Save(1, 0),))).sequences == []
    assert runner.store.n_bytes(1) == sum(
        state[:, 0].nbytes for state in (runner.pool.conv, runner.pool.ssm)
    )
    assert runner.apply((Drop(1),)) == {}


def test_the_report_holds_every_rank(folder):
    reports = run_ranks(2, lambda _, ranks: start(folder, ranks).report())
    alone = start(folder).report()
    assert reports[0] == reports[1]
    assert len(reports[0].weight_bytes) == 2
    shard = random_shard(load_model_config(folder), SINGLE, torch.float32)
    assert alone.weight_bytes == (sum(tensor.nbytes for tensor in shard.values()),)
    assert max(reports[0].weight_bytes) < sum(alone.weight_bytes) <= sum(reports[0].weight_bytes)
    assert reports[0].pool.n_slots == alone.pool.n_slots == 4
    assert alone.collectives == "none"


@pytest.mark.parametrize("weight_dtype", ["auto", "int8", "int4"])
def test_weights_that_memory_cannot_hold_are_not_loaded(folder, monkeypatch, weight_dtype):
    taken = start(folder).report().weight_bytes[0]
    monkeypatch.setattr("sidewinder.engine.loading.load_weights", None)
    free = taken // {"auto": 2, "int8": 5, "int4": 6}[weight_dtype]
    monkeypatch.setattr("sidewinder.engine.memory.free_bytes", lambda _: free)
    with pytest.raises(ValueError, match=r"the weights take .* MiB per rank and .* are free"):
        start(folder, weight_dtype=weight_dtype)


def test_ranks_draw_alike_and_the_first_answers(folder):
    params = SamplingParams(temperature=1.0, logprobs=0)

    def run(tp, ranks):
        assert ranks.tp == tp
        own = start(folder, ranks)
        admission = Admission(0, params, 77, ())
        first = part(own, 0, TOKENS, 0, sample=True, score=(*TOKENS[1:], -1))
        (result,) = step(own, first, admissions=[admission])
        tokens, reports = result.tokens, result.logprobs
        for position in range(len(TOKENS), len(TOKENS) + 5):
            (result,) = step(own, part(own, 0, [tokens[-1]], position, sample=True))
            tokens += result.tokens
            reports += result.logprobs
        return tokens, reports, own.report().collectives_per_step

    (tokens, reports, calls), (others, nothing, _) = run_ranks(2, run)
    assert tokens == others == run(SINGLE, SingleRank(SINGLE))[0]
    assert [report.token_id for report in reports] == tokens
    assert nothing == []
    assert calls >= 3


def test_ranks_agree_on_rank_0s_value(folder):
    values = run_ranks(2, lambda tp, ranks: start(folder, ranks).agree(2**62 + tp.rank))
    assert values == [2**62, 2**62]


def test_blocks_of_logits_are_bounded():
    assert runner_module.LOGITS_PER_BLOCK * 4 <= 2**26
