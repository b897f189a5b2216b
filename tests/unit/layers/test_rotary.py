"""Rotary positions: the definition, pair by pair; and what attention makes of them."""

import cmath
import math

import pytest
import torch

from sidewinder.collectives.base import SingleRank
from sidewinder.layers.attention import Attention
from sidewinder.layers.rotary import Rotary
from sidewinder.layers.weights import Weights
from sidewinder.model_config import AttentionConfig, RotaryConfig
from sidewinder.parallel.group import SINGLE
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import PageTables, pack
from sidewinder.state.decode_index import DecodeIndex
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.pool import StatePool
from sidewinder.testing import assert_close, tiny_config

CPU = torch.device("cpu")


def turned(vector, position, theta, width):
    """One head's vector turned: each pair as a complex number, in float64."""
    n = math.ceil(width / 2)
    result = vector.double().clone()
    for j in range(n):
        pair = complex(vector[j], vector[j + n])
        pair *= cmath.exp(1j * position * theta ** (-2 * j / width))
        result[j], result[j + n] = pair.real, pair.imag
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "width"), [(8, 4), (6, 3), (5, 2), (4, 4), (2, 1)])
def test_equals_the_definition(head_dim, width, dtype):
    positions = torch.tensor([0, 1, 7, 300])
    heads = torch.randn(4, 3, head_dim).to(dtype)
    rotation = Rotary(RotaryConfig(50.0, width), CPU).at(positions)
    result, key = heads.clone(), heads[:, 1:2].clone()
    rotation.turn(result, key)
    assert torch.equal(key, result[:, 1:2]), "keys turn as queries do"
    expected = torch.stack(
        [
            torch.stack([turned(head, int(position), 50.0, width) for head in row])
            for row, position in zip(heads, positions, strict=True)
        ]
    )
    assert_close("turned", expected, result, 1e-4 if dtype == torch.float32 else 4e-3)
    rest = 2 * math.ceil(width / 2)
    assert torch.equal(result[..., rest:], heads[..., rest:])
    assert torch.equal(result[0], heads[0])


def test_scores_depend_on_the_distance_alone():
    rotary = Rotary(RotaryConfig(10000.0, 8), CPU)
    q, k = torch.randn(1, 1, 8), torch.randn(1, 1, 8)

    def score(at_q, at_k):
        turned_q, turned_k, other = q.clone(), k.clone(), torch.zeros(1, 1, 8)
        rotary.at(torch.tensor([at_q])).turn(turned_q, other)
        rotary.at(torch.tensor([at_k])).turn(other, turned_k)
        return float((turned_q * turned_k).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), rel=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), rel=1e-2)


def test_positions_go_on_where_each_sequence_is():
    read = tuple(torch.empty(n_tokens) for n_tokens in (6, 1, 10, 2))
    index = KVIndex(torch.empty(7), read, bounds=(0, 1, 2, 5, 7), n_singles=2)
    assert index.positions.tolist() == [5, 0, 7, 8, 9, 0, 1]
    assert index.positions.dtype == torch.int64


def test_positions_of_fixed_steps_are_read_on_the_device():
    tables = PageTables(torch.zeros(2, 1, dtype=torch.int64), torch.tensor([3, 0]))
    assert DecodeIndex.of(tables, 4).positions.tolist() == [3, 0]


def test_attention_in_chunks_equals_attention_with_positions_written_out():
    """Two query heads of one key-value head; keys are turned before they are stored."""
    rotary, tokens = RotaryConfig(30.0, 4), 11
    config = AttentionConfig((2, 4), 2, 1, 6, scale=0.3, use_bias=True, rotary=rotary)
    shapes = {"q": (12, 48), "k": (6, 48), "v": (6, 48), "o": (48, 12)}
    tensors = {f"{name}.weight": torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": torch.randn(shape[0]) * 0.3 for name, shape in shapes.items()}
    layer = Attention(config, Weights(tensors), SingleRank())
    model = tiny_config("bamba", num_attention_heads=2, num_key_value_heads=1, head_dim=6)
    dims = LocalDims.of(model, SINGLE)
    pool = StatePool(model, dims, 1, torch.float32, n_pages=4, page_size=4, poison=True)
    x, outputs = torch.randn(tokens, 48) * 0.5, []
    angles = Rotary(rotary, CPU)
    for start, stop in ((0, 5), (5, 6), (6, 10), (10, 11)):
        batch = pack([[0] * (stop - start)], [0], [start], [[3, 0, 2]])
        index = pool.kv.index(batch)
        rotation = angles.at(index.positions)
        outputs.append(layer(x[start:stop], pool.kv, 1, index, batch.seqs, rotation))
    q, k, v = (x @ tensors[f"{n}.weight"].T + tensors[f"{n}.bias"] for n in "qkv")
    expected = torch.zeros(tokens, 12, dtype=torch.float64)
    for i in range(tokens):
        keys = torch.stack([turned(k[t], t, 30.0, 4) for t in range(i + 1)])
        for head in (slice(0, 6), slice(6, 12)):
            scores = 0.3 * keys @ turned(q[i, head], i, 30.0, 4)
            expected[i, head] = scores.softmax(0) @ v[: i + 1].double()
    expected = expected @ tensors["o.weight"].T.double() + tensors["o.bias"]
    assert_close("attention", expected, torch.cat(outputs), 1e-5)
