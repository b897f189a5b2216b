"""The state cache on real ranks: they agree without talking, and share a disk with other sizes."""

import pytest

from sidewinder import LLM, SamplingParams
from sidewinder.testing import save_tiny

PROMPT = [(7 * n * n + n) % 97 for n in range(150)]
OPTIONS = {"device": "cpu", "dtype": "float32", "threads": 1, "state_cache_interval": 32}
PARAMS = SamplingParams(max_tokens=6, temperature=0, logprobs=3, ignore_eos=True)


def run(model, prompt=PROMPT, **options):
    (output,) = model.generate([prompt], PARAMS, **options)
    logprobs = [logprob for report in output.logprobs for _, logprob in report.top]
    return output.token_ids, logprobs, output.metrics.cached_tokens


@pytest.mark.slow
def test_two_ranks_and_one_share_a_disk(tmp_path):
    """A hybrid, with its pages; tests/unit/test_llm_state_cache.py has every family on threads."""
    folder, disk = save_tiny("zamba", tmp_path / "model"), str(tmp_path / "states")
    with LLM(folder, tp=2, state_cache_dir=disk, **OPTIONS) as two:
        tokens, logprobs, n_cached = run(two)
        assert n_cached == 0
        warm = run(two)
        assert (warm[0], warm[2]) == (tokens, 128)
        assert warm[1] == pytest.approx(logprobs, abs=1e-4)
        branch = [*PROMPT[:120], 3, 2, 1]
        expected = run(two, branch, cache_salt="own")
        found = run(two, branch)
        assert (found[0], found[2]) == (expected[0], 96)
        assert found[1] == pytest.approx(expected[1], abs=1e-4)
        state = two.snapshot(PROMPT)
        assert two.resume(state, [], PARAMS).token_ids == tokens
        two.release(state)
    with LLM(folder, state_cache_dir=disk, **OPTIONS) as one:
        found = run(one)
        assert (found[0], found[2]) == (tokens, 149)
        assert found[1] == pytest.approx(logprobs, abs=1e-4)
        other = [*branch, 5, 4]
        run(one, other)
    with LLM(folder, tp=2, state_cache_dir=disk, **OPTIONS) as two:
        assert run(two, other)[2] >= 123
        assert two.cache_stats().hits_disk == 1
        for file in (tmp_path / "states").glob("*.1-of-2.safetensors"):
            file.write_bytes(file.read_bytes()[:-9])
        with pytest.warns(UserWarning, match="could not be read"):
            found = run(two)
        assert found[0] == tokens, "a part that one rank cannot read is used by none"
        assert found[1] == pytest.approx(logprobs, abs=1e-4)
