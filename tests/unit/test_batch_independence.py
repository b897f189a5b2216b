"""In float32 the batch around a text changes no bit of it, for models without attention."""

import random
from pathlib import Path

import pytest

from sidewinder import LLM, SamplingParams
from sidewinder.ops import native

MODELS = Path(__file__).parents[2] / "models"
PARAMS = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=0)
OPTIONS = {"device": "cpu", "dtype": "float32", "threads": 1}

pytestmark = pytest.mark.skipif(
    not native.is_available() or native.isa() == "portable",
    reason="torch's products depend on the number of rows",
)


def prompts():
    drawn = random.Random(3)
    lengths = (5, 30, 90, 200, 333)
    return [[drawn.randrange(10, 2048) for _ in range(lengths[i % 5])] for i in range(10)]


def logprobs(outputs):
    return [[entry.logprob for entry in output.logprobs] for output in outputs]


@pytest.mark.parametrize("family", ["mamba", "falcon-mamba", "mamba2"])
def test_alone_together_in_chunks_and_resumed_are_equal(family):
    model = str(MODELS / family)
    with LLM(model, max_batch_size=10, state_cache_bytes=0, **OPTIONS) as llm:
        alone = [logprobs(llm.generate([prompt], PARAMS))[0] for prompt in prompts()]
        together = logprobs(llm.generate(prompts(), PARAMS))
    with LLM(model, max_batch_size=3, max_step_tokens=77, **OPTIONS) as llm:
        in_chunks = logprobs(llm.generate(prompts(), PARAMS))
        resumed = llm.generate(prompts(), PARAMS)
    assert together == alone
    assert in_chunks == alone
    assert logprobs(resumed) == alone
    assert sum(output.metrics.cached_tokens for output in resumed) > 500
