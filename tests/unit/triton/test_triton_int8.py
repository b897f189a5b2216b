"""Products with int8 weights against the definition, and what runs for how many rows."""

import inspect
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from ops_cases import make_case
from triton_cases import TOLERANCE, here, launching, on_device, overridden

from sidewinder.ops import tuning
from sidewinder.ops.linear import int8, reference, triton, vectorized
from sidewinder.ops.triton_math import from_int8
from sidewinder.quantise import GROUP_SIZES, QuantisedWeight, quantise
from sidewinder.testing import assert_close

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"]
)
SMALL = {
    "int8_row_product": {"block_o": 4, "block_i": 128, "num_warps": 1},
    "int8_product": {"block_o": 16, "block_t": 16, "num_warps": 4, "num_stages": 2},
}


def weight_of(case, outputs: int, inputs: int, group_size: int) -> QuantisedWeight:
    """Of rows that do not touch, as a slice of more inputs has them, NaN between their scales."""
    weight = quantise(case.randn(outputs, inputs), group_size)
    values = torch.full((outputs, inputs + 3), 77, dtype=torch.int8)
    scales = torch.full((outputs, weight.scales.shape[1] + 2), torch.nan, dtype=torch.bfloat16)
    values[:, :inputs], scales[:, :-2] = weight.values, weight.scales
    return replace(weight, values=values[:, :inputs], scales=scales[:, :-2])


def arguments_of(dtype, rows, outputs, inputs, group_size, biased=True):
    case = make_case([1], seed=inputs + rows)
    return {
        "x": case.strided(rows, inputs, dtype=dtype),
        "weight": weight_of(case, outputs, inputs, group_size),
        "bias": case.randn(outputs, dtype=dtype) if biased else None,
    }


@DTYPES
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [(1, 9, 37), (1, 4, 128), (1, 1, 1), (1, 7, 300), (2, 9, 37), (5, 20, 130), (33, 17, 300)],
)
def test_products_are_the_references(dtype, group_size, rows, outputs, inputs):
    arguments = arguments_of(dtype, rows, outputs, inputs, group_size, biased=rows != 5)
    with overridden(**SMALL):
        result = on_device(triton.linear, **arguments)
    assert result.shape == (rows, outputs)
    assert result.dtype == dtype
    # Weights and group sums are exact: only the result is rounded.
    tolerance = 1e-5 if dtype == torch.float32 else TOLERANCE[torch.bfloat16] / 2
    assert_close("y", reference.linear(**arguments), result, tolerance)


@DTYPES
@pytest.mark.parametrize("rows", [1, 65, 513])
def test_default_blocks_are_the_references(dtype, rows):
    arguments = arguments_of(dtype, rows, 70, 200, 64)
    result = on_device(triton.linear, **arguments)
    expected = vectorized.linear(**arguments)
    assert_close("y", expected, result, TOLERANCE.get(dtype, 2**-8))


def test_rounding_is_the_same_everywhere():
    weight = make_case([1], seed=1).randn(300, 1000, dtype=torch.bfloat16)
    expected, found = quantise(weight), quantise(here(weight))
    assert torch.equal(found.scales.cpu(), expected.scales)
    assert torch.equal(found.values.cpu(), expected.values)


@pytest.mark.parametrize("biased", [True, False])
def test_slices_are_the_reference(biased, monkeypatch):
    arguments = arguments_of(torch.bfloat16, 20, 37, 70, 32, biased)
    monkeypatch.setattr(int8, "SLICE_BYTES", 70 * 2 * 8)
    monkeypatch.setattr(int8, "MANY_ROWS", 20)
    monkeypatch.setattr(int8, "FEW_ROWS", 19)
    with launching.recording() as launches:
        on_device(triton.linear, **arguments)
    assert [launch.kernel.fn.__name__ for launch in launches] == ["dequantise"] * 5
    made = [launch.arguments[4] for launch in launches]
    assert {tensor.dtype for tensor in made} == {torch.bfloat16}
    assert max(tensor.nbytes for tensor in made) == int8.SLICE_BYTES
    result = on_device(triton.linear, **arguments)
    assert_close("y", reference.linear(**arguments), result, TOLERANCE[torch.bfloat16])


def kernels_of(dtype, rows, outputs=4096, inputs=256):
    weight = quantise(torch.randn(outputs, inputs))
    with launching.recording() as launches:
        triton.linear(torch.zeros(rows, inputs, dtype=dtype), weight)
    return {launch.kernel.fn.__name__ for launch in launches}


def test_rows_decide_how_they_are_multiplied():
    for rows, kernel in (
        (1, "int8_row_product"), (2, "int8_product"), (64, "int8_product"),
        (511, "int8_product"), (512, "dequantise"),
    ):  # fmt: skip
        assert kernels_of(torch.bfloat16, rows) == {kernel}, rows
    assert kernels_of(torch.float32, 512) == {"int8_product"}, "no copy in float32"
    assert kernels_of(torch.bfloat16, 0) == set()


@pytest.mark.parametrize("rows", [1, 2, 64, 65, 511, 512, 8192])
@DTYPES
def test_candidates_are_few_and_different(dtype, rows):
    found = int8.row_candidates(256, dtype) if rows == 1 else int8.candidates(rows, 4096, dtype)
    keys = [tuple(sorted(config.items())) for config in found]
    assert len(set(keys)) == len(keys) <= 16
    assert dtype != torch.float32 or int8.SLICES not in found, "a slice would be float32"
    for config in found:
        if "block_i" in config:
            assert config["block_i"] % max(GROUP_SIZES) == 0


def test_a_narrow_matrix_has_more_programs():
    narrow, wide = (
        int8.candidates(8, 2560, torch.bfloat16),
        int8.candidates(8, 10240, torch.float16),
    )
    assert narrow[0]["block_o"] < wide[0]["block_o"]


def test_a_row_may_be_multiplied_by_matrix_units():
    arguments = arguments_of(torch.bfloat16, 1, 20, 130, 64)
    with tuning.candidate(len(int8.ROW)), launching.recording() as launches:
        on_device(triton.linear, **arguments)
    assert [launch.kernel.fn.__name__ for launch in launches] == ["int8_product"]
    with tuning.candidate(len(int8.ROW)):
        result = on_device(triton.linear, **arguments)
    assert_close("y", reference.linear(**arguments), result, 2**-8)


def test_bytes_become_float32_as_the_assembly_says():
    """The interpreter converts in another way, so the instructions are followed here."""
    source = inspect.getsource(from_int8.fn)
    words = re.findall(r"xor\.b32 turned, \$4, (0x\w+);\s*mov\.b32 high, (0x\w+);", source)
    mask, high = (int(number, 16) for number in words[0])
    chosen = re.findall(r"prmt\.b32 \$(\d), turned, high, (0x\w+);", source)
    offset = float(re.findall(r"return shifted - ([\d.]+)", source)[0])
    numbers = np.arange(-128, 128, dtype=np.int8).reshape(-1, 4)
    turned = (numbers.view(np.uint32) ^ np.uint32(mask)).view(np.uint8).reshape(-1, 4)
    both = np.concatenate([turned, np.tile(np.uint32(high)[None].view(np.uint8), (64, 1))], 1)
    assert [int(place) for place, _ in chosen] == [0, 1, 2, 3]
    for place, selector in chosen:
        bytes_ = [both[:, int(selector, 16) >> 4 * byte & 7] for byte in range(4)]
        result = np.stack(bytes_, 1).copy().view(np.float32)[:, 0] - np.float32(offset)
        assert (result == numbers[:, int(place)]).all()
