"""In float32 the batch around a text changes no bit of it, for models without attention."""

import random
from pathlib import Path

import pytest
import torch

from sidewinder import LLM, SamplingParams
from sidewinder.ops import native, native_linear

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


@pytest.mark.parametrize("weight_dtype", ["auto", "int8", "int4"])
@pytest.mark.parametrize("family", ["mamba", "falcon-mamba", "mamba2"])
def test_alone_together_in_chunks_and_resumed_are_equal(family, weight_dtype):
    if weight_dtype != "auto" and 8 not in native_linear.packed_bits(torch.device("cpu")):
        pytest.skip("integers that are not packed are multiplied otherwise from 9 rows on")
    model = str(MODELS / family)
    options = OPTIONS | {"weight_dtype": weight_dtype}
    with LLM(model, max_batch_size=10, state_cache_bytes=0, **options) as llm:
        alone = [logprobs(llm.generate([prompt], PARAMS))[0] for prompt in prompts()]
        together = logprobs(llm.generate(prompts(), PARAMS))
    with LLM(model, max_batch_size=3, max_step_tokens=77, **options) as llm:
        in_chunks = logprobs(llm.generate(prompts(), PARAMS))
        resumed = llm.generate(prompts(), PARAMS)
    assert together == alone
    assert in_chunks == alone
    assert logprobs(resumed) == alone
    assert sum(output.metrics.cached_tokens for output in resumed) > 500
