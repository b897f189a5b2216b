"""weight_dtype="int8": what its dequantised weights give, at a small cost on real text."""

from pathlib import Path

import pytest
import torch
from parity_harness import Driver, random_tokens

from sidewinder import LLM
from sidewinder.checkpoint.reader import load_shard
from sidewinder.collectives.base import Collectives
from sidewinder.config import load_model_config
from sidewinder.layers.weights import Weight
from sidewinder.models.registry import build_model
from sidewinder.parallel.group import TensorParallel
from sidewinder.quantise import Int8Weight, quantise_weights
from sidewinder.testing import TINY, assert_close, run_ranks, save_tiny

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", TINY)
def test_int8_equals_its_dequantised_weights(family, tp, tmp_path):
    folder = save_tiny(family, tmp_path)
    config = load_model_config(folder)
    sequences = random_tokens(config.vocab_size, [5, 1, 17])

    def logits(weights: dict[str, Weight], group: TensorParallel, collectives: Collectives):
        model = build_model(config, group, weights, collectives)
        return Driver(model, 17, torch.float32).run(sequences, [17, 1, 3])

    def rank(group: TensorParallel, collectives: Collectives):
        plain = load_shard(folder, config, group, torch.float32, torch.device("cpu"))
        int8 = quantise_weights(plain, config.tie_embeddings)
        wide = {
            name: weight.dequantise() if isinstance(weight, Int8Weight) else weight
            for name, weight in int8.items()
        }
        runs = [logits(weights, group, collectives) for weights in (int8, wide, plain)]
        return [torch.cat(run) for run in runs]

    for int8, wide, plain in run_ranks(tp, rank):
        assert_close("int8", wide, int8, 1e-4)
        assert not torch.allclose(plain, int8, atol=1e-4), "nothing was rounded"


def test_what_steers_the_recurrence_stays(tmp_path):
    folder = save_tiny("mamba", tmp_path)
    config = load_model_config(folder)
    weights = load_shard(folder, config, TensorParallel(), torch.float32, torch.device("cpu"))
    int8 = quantise_weights(weights, config.tie_embeddings)
    rounded = {name for name, weight in int8.items() if isinstance(weight, Int8Weight)}
    mixers = [f"layers.{layer}.mixer" for layer in range(config.n_layers)]
    expected = {f"{mixer}.{part}.weight" for mixer in mixers for part in ("in_proj", "out_proj")}
    assert rounded == expected | {"lm_head.weight"}
    assert int8["embedding.weight"] is weights["embedding.weight"]


@pytest.mark.parametrize("family", ["mamba", "falcon-mamba", "mamba2", "zamba"])
def test_int8_costs_at_most_half_a_percent_of_perplexity(family):
    text = (ROOT / "data" / "heldout.txt").read_text()[20_000:26_000]
    perplexity = {}
    for weight_dtype in ("auto", "int8"):
        with LLM(ROOT / "models" / family, device="cpu", weight_dtype=weight_dtype) as llm:
            perplexity[weight_dtype] = llm.perplexity(text).perplexity
    assert perplexity["int8"] != perplexity["auto"]
    assert perplexity["int8"] <= 1.005 * perplexity["auto"]


def test_other_weight_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"weight_dtype='int3'.*auto or int8"):
        LLM(ROOT / "models" / "mamba", weight_dtype="int3")
