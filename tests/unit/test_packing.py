"""Packed weights as data: nothing is lost, and parts are the parts of the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidewinder.ops.linear import reference, vectorized
from sidewinder.packing import PackedWeight, pack, pack_weights
from sidewinder.quantise import QuantisedWeight, quantise

OUTPUTS = st.one_of(st.integers(1, 70), st.sampled_from([63, 64, 65, 128, 130]))
INPUTS = st.integers(1, 140)


def matrix(outputs: int, inputs: int) -> torch.Tensor:
    values = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs + inputs))
    return values.bfloat16()


def same(a: torch.Tensor | QuantisedWeight, b: torch.Tensor | QuantisedWeight) -> bool:
    if isinstance(a, QuantisedWeight) and isinstance(b, QuantisedWeight):
        alike = (a.shape, a.bits, a.group_size) == (b.shape, b.bits, b.group_size)
        return alike and all(map(torch.equal, (a.integers(), a.scales), (b.integers(), b.scales)))
    return torch.equal(a, b)


@settings(max_examples=30)
@given(OUTPUTS, INPUTS, st.sampled_from([None, 32, 64, 128]), st.sampled_from([8, 4]))
def test_unpacking_undoes_packing(outputs, inputs, group_size, bits):
    weight = matrix(outputs, inputs)
    if group_size is not None:
        weight = quantise(weight, group_size, bits)
    packed = pack(weight)
    assert packed.shape == weight.shape
    assert same(packed.unpack(), weight)


@settings(max_examples=30)
@given(OUTPUTS, INPUTS, st.data())
def test_parts_are_the_parts_of_the_whole(outputs, inputs, data):
    weight = matrix(outputs, inputs)
    start = data.draw(st.integers(0, outputs - 1))
    rows = slice(start, data.draw(st.integers(start + 1, outputs)))
    first = data.draw(st.integers(0, inputs - 1))
    columns = slice(first, data.draw(st.integers(first + 1, inputs)))
    packed = pack(weight)
    assert same(packed.rows(rows).unpack(), weight[rows])
    assert same(packed.columns(columns).unpack(), weight[:, columns])
    for bits in (8, 4):
        rounded = quantise(weight, bits=bits)
        assert same(pack(rounded).rows(rows).unpack(), rounded[rows])


def test_four_bits_take_half_the_words_of_eight():
    weight = matrix(128, 256)
    eight, four = (pack(quantise(weight, 64, bits)) for bits in (8, 4))
    assert (eight.unit, four.unit) == (4, 8)
    assert four.data.nbytes == eight.data.nbytes // 2 == 128 * 256 // 2


def test_aligned_parts_share_memory():
    packed = pack(matrix(192, 64))
    start = packed.data.data_ptr()
    assert packed.rows(slice(64, 192)).data.data_ptr() == start + packed.data[0].nbytes
    assert packed.columns(slice(0, 32)).data.data_ptr() == start


def test_rows_are_found():
    weight, rows = matrix(150, 33), torch.tensor([149, 0, 64, 63, 64])
    assert torch.equal(pack(weight).lookup(rows), weight[rows])
    assert pack(weight).lookup(torch.tensor([], dtype=torch.long)).shape == (0, 33)


@pytest.mark.parametrize("linear", [reference.linear, vectorized.linear])
def test_every_backend_takes_them(linear):
    weight, x, bias = matrix(70, 33), matrix(5, 33), torch.randn(70).bfloat16()
    assert torch.equal(linear(x, pack(weight), bias), linear(x, weight, bias))
    for bits in (8, 4):
        rounded = quantise(weight, bits=bits)
        assert torch.equal(linear(x, pack(rounded), bias), linear(x, rounded, bias))


@pytest.mark.parametrize("bits", [(), (4,), (8,), (16,), (16, 8, 4)])
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_packed(tied, bits):
    weights = {
        "embedding.weight": matrix(8, 4),
        "final_norm.weight": matrix(1, 4)[0],
        "layers.0.mixer.in_proj.weight": quantise(matrix(8, 4)),
        "layers.0.mixer.out_proj.weight": quantise(matrix(8, 4), bits=4),
        "layers.0.mixer.x_proj.weight": matrix(8, 4),
        "layers.0.mixer.conv.weight": matrix(8, 4),
        "layers.1.mixer.out_proj.weight": matrix(8, 4).float(),
    }
    packed = {
        name
        for name, weight in pack_weights(weights, tied, bits).items()
        if isinstance(weight, PackedWeight)
    }
    assert not weights, "nothing is held twice"
    of_bits = {
        4: {"layers.0.mixer.out_proj.weight"},
        8: {"layers.0.mixer.in_proj.weight"},
        16: {"layers.0.mixer.x_proj.weight", *(["embedding.weight"] if tied else [])},
    }
    assert packed == set().union(*(of_bits[each] for each in bits))
