"""The shared block's attention over pages, against plain attention over whole sequences; MLPs."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers.activations import ReLUSquaredActivation

from sidewinder.collectives.base import SingleRank
from sidewinder.layers.attention import Attention
from sidewinder.layers.mlp import GatedMLP, SquaredMLP, mlp_of
from sidewinder.layers.weights import Weights
from sidewinder.model_config import MLPConfig
from sidewinder.parallel.group import SINGLE
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import assert_close, tiny_config


def plain_attention(x, weights, config):
    """One sequence, one query head at a time, with an explicit causal softmax."""
    d, per_kv = config.head_dim, config.n_heads // config.n_kv_heads
    q, k, v = (x @ weights[f"{name}.weight"].T for name in "qkv")
    heads = []
    for head in range(config.n_heads):
        mine, shared = slice(head * d, (head + 1) * d), head // per_kv
        theirs = slice(shared * d, (shared + 1) * d)
        scores = q[:, mine] @ k[:, theirs].T / (d / 2) ** 0.5
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        heads.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v[:, theirs])
    return torch.cat(heads, dim=-1) @ weights["o.weight"].T


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_chunks_of_packed_sequences_over_pages(n_kv_heads):
    config = tiny_config("zamba")
    config = replace(config, attention=replace(config.attention, n_kv_heads=n_kv_heads))
    attention = config.attention
    width = attention.head_dim
    tensors = {
        "q.weight": torch.randn(attention.n_heads * width, 48),
        "k.weight": torch.randn(n_kv_heads * width, 48),
        "v.weight": torch.randn(n_kv_heads * width, 48),
        "o.weight": torch.randn(24, attention.n_heads * width),
    }
    layer = Attention(attention, Weights(tensors), SingleRank())
    dims = LocalDims.of(config, SINGLE)
    pool = StatePool(config, dims, 2, torch.float32, n_pages=8, page_size=4, poison=True)
    long, short = torch.randn(14, 48) * 0.2, torch.randn(3, 48) * 0.2
    tables = [[6, 1, 3, 0], [5]]
    outputs = {0: [], 1: []}
    # (sequence, start, stop) of each step: prefill, a chunk beside a single token, both singles.
    steps = [[(0, 0, 9)], [(1, 0, 1), (0, 9, 13)], [(1, 1, 2), (0, 13, 14)], [(1, 2, 3)]]
    for step in steps:
        rows = [(long, short)[s][start:stop] for s, start, stop in step]
        batch = pack(
            [[0] * len(part) for part in rows],
            [s for s, _, _ in step],
            [start for _, start, _ in step],
            [tables[s] for s, _, _ in step],
        )
        y = layer(torch.cat(rows), pool.kv, 1, pool.kv.index(batch), batch.seqs)
        for (s, _, _), part in zip(step, y.split([len(part) for part in rows]), strict=True):
            outputs[s].append(part)
    for s, x in enumerate((long, short)):
        assert_close(f"sequence {s}", plain_attention(x, tensors, attention),
                     torch.cat(outputs[s]), 1e-5)  # fmt: skip


def test_an_unknown_activation_lists_those_that_exist():
    with pytest.raises(ValueError, match=r"'mish' is not supported.*gelu.*silu"):
        GatedMLP("mish", Weights({}), SingleRank())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_an_mlp_without_a_gate_squares_its_relu(dtype):
    """To the bit as transformers' activation, which rounds once, too."""
    weights = {
        "up.weight": torch.randn(12, 5).to(dtype), "up.bias": torch.randn(12).to(dtype),
        "down.weight": torch.randn(5, 12).to(dtype), "down.bias": torch.randn(5).to(dtype),
    }  # fmt: skip
    config, x = MLPConfig(12, "relu2", use_bias=True, gated=False), torch.randn(7, 5).to(dtype)
    mlp = mlp_of(config, Weights(weights), SingleRank())
    assert isinstance(mlp, SquaredMLP)
    inner = ReLUSquaredActivation()(mlp.up(x))
    expected = F.linear(inner, weights["down.weight"], weights["down.bias"])
    seqs = pack([[0]] * 7, list(range(7))).seqs
    torch.testing.assert_close(mlp._inner(x), inner, rtol=0, atol=0)
    torch.testing.assert_close(mlp(x, seqs), expected)
    torch.testing.assert_close(mlp.start(x, seqs).wait(), expected)


def test_no_other_activation_is_without_a_gate():
    with pytest.raises(ValueError, match=r"'silu' is not supported without a gate.*relu2"):
        mlp_of(MLPConfig(12, "silu", gated=False), Weights({}), SingleRank())
    with pytest.raises(ValueError, match="'relu2' is not supported"):
        mlp_of(MLPConfig(12, "relu2"), Weights({}), SingleRank())
