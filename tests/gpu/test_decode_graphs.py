"""The engine on a GPU: CUDA graphs on and off, and the CPU, give the same logits and texts."""

import pytest
import torch

from sidewinder import LLM, SamplingParams
from sidewinder.ops.dispatch import forced
from sidewinder.quantise import BITS
from sidewinder.testing import TINY, assert_close, save_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPTS = [[5, 80, 12, 44, 7], [9], list(range(30, 50))]
PARAMS = {
    "greedy": SamplingParams(max_tokens=12, temperature=0, ignore_eos=True),
    "random": SamplingParams(
        max_tokens=12, temperature=0.8, top_k=20, top_p=0.9, seed=3, ignore_eos=True
    ),
    "penalised": SamplingParams(
        max_tokens=12, temperature=0.8, repetition_penalty=1.2, seed=3, ignore_eos=True
    ),
}


@pytest.fixture(scope="module", params=TINY)
def folder(request, tmp_path_factory):
    return str(save_tiny(request.param, tmp_path_factory.mktemp(request.param)))


def engine(folder, **options):
    values = {"device": "cuda", "dtype": "float32", "kv_cache_tokens": 512, "max_batch_size": 4}
    return LLM(folder, **(values | options))


def test_logits_are_those_of_the_cpu(folder):
    with engine(folder) as gpu, engine(folder, device="cpu") as cpu:
        for ours, reference in zip(gpu.logits(PROMPTS), cpu.logits(PROMPTS), strict=True):
            assert_close("logits", reference, ours, 1e-4)


@pytest.mark.parametrize("weight_dtype", BITS)
def test_integer_weights_are_those_of_the_cpu_in_graphs_and_without(folder, weight_dtype):
    options, texts = {"weight_dtype": weight_dtype}, []
    # torch's, whose weights are exact; native ones round inputs, on each processor in its own way.
    with forced("torch"), engine(folder, device="cpu", **options) as cpu:
        expected = cpu.logits(PROMPTS)
    for graphs in ("auto", "off"):
        with engine(folder, cuda_graphs=graphs, **options) as gpu:
            for reference, ours in zip(expected, gpu.logits(PROMPTS), strict=True):
                assert_close("logits", reference, ours, 1e-4)
            outputs = gpu.generate(PROMPTS, PARAMS["penalised"])
            texts.append([output.token_ids for output in outputs])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", PARAMS)
def test_graphs_change_nothing(folder, kind):
    texts = []
    for graphs in ("auto", "off"):
        with engine(folder, cuda_graphs=graphs) as llm:
            outputs = llm.generate(PROMPTS, PARAMS[kind])
            texts.append([output.token_ids for output in outputs])
    assert texts[0] == texts[1]
