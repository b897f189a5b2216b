"""Cached equals recomputed: every family, one rank and two, every tier, and what gets in between.

Two ranks are threads here; tests/parallel has processes.
"""

import pytest
from cache_cases import OTHERS, PROMPT, cached, expected_row, fill, first_logprobs, same, whole_row

from sidewinder import SamplingParams
from sidewinder.testing import TINY, save_tiny

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module", params=TINY)
def folder(request, tmp_path_factory):
    return save_tiny(request.param, tmp_path_factory.mktemp(request.param), eos_token_id=None)


@pytest.fixture(params=[1, 2], ids=["tp1", "tp2"])
def tp(request):
    return request.param


def state_bytes(folder, tp):
    with cached(folder, tp=tp) as model:
        return model.runner_report.cache.state_bytes


def test_device_tier(folder, tp):
    with cached(folder, tp=tp) as model:
        expected = expected_row(model, PROMPT)
        cold, n_cold = first_logprobs(model, PROMPT)
        warm, n_warm = first_logprobs(model, PROMPT)
        same("cold", expected, cold)
        same("warm", expected, warm)
        assert (n_cold, n_warm) == (0, 128)
        branch = [*PROMPT[:130], 5, 6, 7]
        row, n_cached = first_logprobs(model, branch)
        same("a branch", expected_row(model, branch), row)
        assert n_cached == 128
        assert model.cache_stats().hits_device == 2


def test_host_tier_after_eviction(folder, tp):
    n_bytes = state_bytes(folder, tp)
    sizes = {"state_cache_bytes": 2 * n_bytes, "state_cache_host_bytes": 400 * n_bytes}
    with cached(folder, tp=tp, **sizes) as model:
        expected = expected_row(model, PROMPT)
        first_logprobs(model, PROMPT)
        fill(model)
        assert model.cache_stats().snapshots_device <= 2
        row, n_cached = first_logprobs(model, PROMPT)
        same("from host memory", expected, row)
        assert n_cached >= 96
        assert model.cache_stats().hits_host == 1
        again, n_cached = first_logprobs(model, PROMPT)
        same("from the device again", expected, again)
        assert n_cached >= 96


def test_disk_tier_after_eviction_and_restart_with_other_ranks(folder, tp, tmp_path):
    n_bytes = state_bytes(folder, tp)
    disk = {"state_cache_dir": str(tmp_path)}
    with cached(folder, tp=tp, state_cache_bytes=40 * n_bytes, **disk) as model:
        expected = expected_row(model, PROMPT)
        first_logprobs(model, PROMPT)
        fill(model)
    with cached(folder, tp=3 - tp, **disk) as model:
        row, n_cached = first_logprobs(model, PROMPT)
        same("written by other ranks", expected, row)
        assert n_cached == 128
        assert model.cache_stats().hits_disk == 1
    with cached(folder, tp=tp, **disk) as model:
        row, n_cached = first_logprobs(model, PROMPT)
        same("after two restarts", expected, row)
        assert n_cached >= 128
        assert model.cache_stats().disk_errors == 0


def test_evicted_to_nowhere_is_run_again(folder, tp):
    with cached(folder, tp=tp, state_cache_bytes=2 * state_bytes(folder, tp)) as model:
        first_logprobs(model, PROMPT)
        fill(model)
        row, n_cached = first_logprobs(model, PROMPT)
        same("evicted", expected_row(model, PROMPT), row)
        assert n_cached == 0
        assert model.cache_stats().evicted > 0


def test_concurrent_requests_share_what_one_computes(folder, tp):
    """Some resume while others still decode from the same states and pages."""
    prompts = [[*PROMPT[:100], n, n + 1] for n in range(6)] + [PROMPT, PROMPT, OTHERS[0]]
    with cached(folder, tp=tp, max_step_tokens=48) as model, cached(folder, tp=tp) as alone:
        params = SamplingParams(
            max_tokens=8, temperature=0, logprobs=model.model_config.vocab_size, ignore_eos=True
        )
        outputs = model.generate(prompts, params)
        for prompt, output in zip(prompts, outputs, strict=True):
            row = whole_row(output, model.model_config.vocab_size)
            same("concurrent", expected_row(alone, prompt), row)
            (own,) = alone.generate([prompt], GREEDY, cache_salt=str(prompt))
            assert output.token_ids == own.token_ids
        n_run = model.counters.prompt_tokens
        # The first runs whole, the next five and the two longer ones what comes after 100 tokens.
        assert n_run <= 102 + 5 * 2 + 50 + 1 + len(OTHERS[0]) + 40
        assert n_run + model.counters.cached_tokens == sum(map(len, prompts))


def test_a_salt_is_a_wall(folder):
    with cached(folder) as model:
        assert first_logprobs(model, PROMPT, cache_salt="a")[1] == 0
        assert first_logprobs(model, PROMPT, cache_salt="b")[1] == 0
        assert first_logprobs(model, PROMPT)[1] == 0
        assert first_logprobs(model, PROMPT, cache_salt="a")[1] == 128


def test_ten_turns_run_each_token_once(folder):
    with cached(folder) as model:
        text, n_seen = [5, 6, 7], 0
        for turn in range(10):
            text += [(turn * 11 + n) % 97 for n in range(23)]
            (output,) = model.generate([text], GREEDY)
            assert output.metrics.cached_tokens == n_seen
            text += output.token_ids
            # The last token drawn was never run.
            n_seen = len(text) - 1
        counters = model.counters
        assert counters.prompt_tokens + counters.decode_tokens == n_seen
        stats = model.cache_stats()
        assert (stats.queries, stats.hits) == (10, 9)
        assert stats.query_tokens == counters.prompt_tokens + counters.cached_tokens
        assert stats.cached_tokens == counters.cached_tokens


def test_all_of_a_prompt_runs_where_all_is_wanted(folder):
    params = SamplingParams(max_tokens=2, temperature=0, prompt_logprobs=0)
    with cached(folder) as model:
        first_logprobs(model, PROMPT)
        (output,) = model.generate([PROMPT], params)
        assert output.metrics.cached_tokens == 0
        assert len([score for score in output.prompt_logprobs if score]) == len(PROMPT) - 1
        assert len(model.logits([PROMPT])[0]) == len(PROMPT)
        assert len(model.score([PROMPT])[0]) == len(PROMPT) - 1
        assert model.cache_stats().queries == 1


def test_a_conversation_is_kept_and_continued(folder, tp):
    with cached(folder, tp=tp) as model, cached(folder, state_cache_bytes=0) as plain:
        (output,) = model.generate([PROMPT[:40]], GREEDY)
        n_run = model.counters.prompt_tokens
        state = model.snapshot(output)
        assert model.counters.prompt_tokens == n_run, "it was known"
        text = PROMPT[:40] + output.token_ids
        assert list(state.token_ids) == text
        for more in ([], [9, 8, 7], [3] * 40):
            (expected,) = plain.generate([text + more], GREEDY)
            assert model.resume(state, more, GREEDY).token_ids == expected.token_ids
        other = plain.snapshot(PROMPT)
        found = plain.resume(other, [1], GREEDY)
        assert found.token_ids == plain.generate([[*PROMPT, 1]], GREEDY)[0].token_ids
        assert found.metrics.cached_tokens == len(PROMPT) - 1
        for model_, own in ((model, state), (plain, other)):
            model_.release(own)
        assert [len(runner.store) for runner in plain._executor.runners] == [0]


def test_a_state_that_is_not_held_is_refused_and_the_engine_lives_on(folder):
    with cached(folder) as model, cached(folder) as other:
        state, foreign = model.snapshot(PROMPT), other.snapshot(PROMPT)
        expected = model.resume(state, [1], GREEDY).token_ids
        model.release(state)
        for gone in (state, foreign):
            with pytest.raises(ValueError, match="make it again with snapshot"):
                model.resume(gone, [1], GREEDY)
            with pytest.raises(ValueError, match="was released, or is another LLM's"):
                model.release(gone)
        assert model.resume(model.snapshot(PROMPT), [1], GREEDY).token_ids == expected


def test_aborted_prompts_leave_nothing_wrong(folder):
    with cached(folder, max_step_tokens=40) as model:
        expected = expected_row(model, PROMPT)
        stream = model.stream(PROMPT, GREEDY)
        other = model.stream([*PROMPT[:120], 1, 2], GREEDY)
        next(stream)
        next(other)
        stream.close()
        other.close()
        row, n_cached = first_logprobs(model, PROMPT)
        same("after an abort", expected, row)
        assert n_cached > 0
        assert model.cache_stats().kv_pages_used * 16 < 4096


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_fewer_bits_stay_near(folder, dtype):
    """Of random weights, whose states are harder to round than a trained model's."""
    with cached(folder, state_cache_dtype=dtype) as model, cached(folder) as exact:
        first_logprobs(model, PROMPT)
        row, n_cached = first_logprobs(model, PROMPT)
        expected = expected_row(model, PROMPT)
        assert n_cached == 128
        kl = float((expected.exp() * (expected - row)).sum())
        assert 0 <= kl + 1e-6 < 1e-2
        sizes = model.runner_report.cache.state_bytes, exact.runner_report.cache.state_bytes
        assert sizes[0] < 0.6 * sizes[1]
