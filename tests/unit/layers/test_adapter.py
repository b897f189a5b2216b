"""What adapters add, whole and on ranks, against the weights that they would make."""

import pytest
import torch

from sidewinder.checkpoint.random import random_shard
from sidewinder.layers.adapter import Adapter, adapted
from sidewinder.layers.weights import Weights
from sidewinder.models.registry import build_model
from sidewinder.sharding.plan import sharding_plan
from sidewinder.sharding.slicing import Replicate, Split
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import assert_close, run_ranks, tiny_config

ADAPTED = {"use_shared_attention_adapter": True, "use_mem_rope": False}


def test_a_layer_is_as_one_with_the_sum_of_its_weights():
    weight, A, B, x = torch.randn(7, 5), torch.randn(2, 5), torch.randn(7, 2), torch.randn(3, 5)
    weights = Weights({"A.weight": A, "B.weight": B})
    assert_close("adapter", x @ (B @ A).T, Adapter(weights)(x), 1e-6)
    layer = adapted(lambda rows: rows @ weight.T, weights)
    assert_close("sum", x @ (weight + B @ A).T, layer(x), 1e-6)


def test_without_an_adapter_the_layer_stays_what_it_is():
    layer = torch.nn.Identity()
    assert adapted(layer, None) is layer


@pytest.mark.parametrize("size", [2, 3])
def test_a_is_whole_and_b_split_as_its_projection(size):
    config = tiny_config("zamba2", **ADAPTED)
    plan = sharding_plan(config, size)
    for name in "qkv":
        assert plan[f"layers.1.adapter.{name}.A.weight"] == Replicate()
        own, base = (
            plan[f"layers.1.adapter.{name}.B.weight"],
            plan[f"shared.0.attention.{name}.weight"],
        )
        assert own == base
    both, gate = plan["layers.1.adapter.gate_up.B.weight"], plan["shared.0.mlp.gate.weight"]
    assert isinstance(gate, Split)
    assert [(band.name, band.shares) for band in both.bands] == [
        ("gate", gate.shares),
        ("up", gate.shares),
    ]


def folded(weights, config):
    """The same model of one call without adapters: they are added to its block's weights."""
    weights, d_ff = dict(weights), config.mlp.d_ff
    (layer,) = config.attention.layers
    own = {name: weights.pop(name) for name in list(weights) if ".adapter." in name}

    def more(name):
        prefix = f"layers.{layer}.adapter.{name}"
        return own[f"{prefix}.B.weight"] @ own[f"{prefix}.A.weight"]

    for name in "qkv":
        weights[f"shared.attention.{name}.weight"] += more(name)
    weights["shared.mlp.gate.weight"] += more("gate_up")[:d_ff]
    weights["shared.mlp.up.weight"] += more("gate_up")[d_ff:]
    zero = {name: torch.zeros_like(weight) for name, weight in own.items()}
    return weights | zero


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_model_is_as_one_with_folded_weights(size):
    kinds = ["mamba", "hybrid", "mamba"]
    config = tiny_config("zamba2", **ADAPTED, layers_block_type=kinds, num_hidden_layers=3)

    def hidden(tp, collectives, fold):
        weights = random_shard(config, tp, torch.float32)
        model = build_model(config, tp, folded(weights, config) if fold else weights, collectives)
        pool = StatePool(config, model.dims, 1, torch.float32, n_pages=1)
        return model.forward(pack([[5, 6, 7, 8]], [0], page_tables=[[0]]), pool)

    (expected,) = run_ranks(1, lambda tp, c: hidden(tp, c, fold=True))
    for result in run_ranks(size, lambda tp, c: hidden(tp, c, fold=False)):
        assert_close("hidden", expected, result, 1e-5)
