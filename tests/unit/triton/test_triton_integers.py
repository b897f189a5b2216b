"""Products with int8 and int4 weights against the definition; what runs for how many rows."""

from dataclasses import replace

import pytest
import torch
from ops_cases import make_case
from triton_cases import TOLERANCE, here, launching, on_device, overridden

from sidewinder.ops import tuning
from sidewinder.ops.linear import integer, reference, triton, vectorized
from sidewinder.quantise import BITS as BITS_OF
from sidewinder.quantise import GROUP_SIZES, QuantisedWeight, quantise
from sidewinder.testing import assert_close

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"]
)
BITS = pytest.mark.parametrize("bits", BITS_OF.values(), ids=BITS_OF)
SMALL = {
    name: config
    for bits in BITS_OF.values()
    for name, config in (
        (f"int{bits}_row_product", {"block_o": 4, "block_i": 128, "num_warps": 1}),
        (f"int{bits}_product", {"block_o": 16, "block_t": 16, "num_warps": 4, "num_stages": 2}),
    )
}


def weight_of(case, outputs: int, inputs: int, group_size: int, bits: int) -> QuantisedWeight:
    """Of rows that do not touch, as a slice of more inputs has them, NaN between their scales."""
    weight = quantise(case.randn(outputs, inputs), group_size, bits)
    width = weight.values.shape[1]
    values = torch.full((outputs, width + 3), 77, dtype=weight.values.dtype)
    scales = torch.full((outputs, weight.scales.shape[1] + 2), torch.nan, dtype=torch.bfloat16)
    values[:, :width], scales[:, :-2] = weight.values, weight.scales
    return replace(weight, values=values[:, :width], scales=scales[:, :-2])


def arguments_of(dtype, rows, outputs, inputs, group_size, biased=True, bits=8):
    case = make_case([1], seed=inputs + rows)
    return {
        "x": case.strided(rows, inputs, dtype=dtype),
        "weight": weight_of(case, outputs, inputs, group_size, bits),
        "bias": case.randn(outputs, dtype=dtype) if biased else None,
    }


@BITS
@DTYPES
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [(1, 9, 37), (1, 4, 128), (1, 1, 1), (1, 7, 300), (2, 9, 37), (5, 20, 130), (33, 17, 300)],
)
def test_products_are_the_references(dtype, group_size, rows, outputs, inputs, bits):
    arguments = arguments_of(dtype, rows, outputs, inputs, group_size, rows != 5, bits)
    with overridden(**SMALL):
        result = on_device(triton.linear, **arguments)
    assert result.shape == (rows, outputs)
    assert result.dtype == dtype
    # Weights and group sums are exact: only the result is rounded.
    tolerance = 1e-5 if dtype == torch.float32 else TOLERANCE[torch.bfloat16] / 2
    assert_close("y", reference.linear(**arguments), result, tolerance)


@BITS
@DTYPES
@pytest.mark.parametrize("rows", [1, 7, 65, 513])
def test_default_blocks_are_the_references(dtype, rows, bits):
    arguments = arguments_of(dtype, rows, 70, 200, 64, bits=bits)
    result = on_device(triton.linear, **arguments)
    expected = vectorized.linear(**arguments)
    assert_close("y", expected, result, TOLERANCE.get(dtype, 2**-8))


@BITS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
def test_rounding_is_the_same_everywhere(dtype, bits):
    weight = make_case([1], seed=1).randn(300, 1000, dtype=dtype)
    weight[3, 32:64] = 0
    weight[4] *= 1e-30
    weight[5] *= 1e30
    expected, found = quantise(weight, bits=bits), quantise(here(weight), bits=bits)
    assert torch.equal(found.scales.cpu(), expected.scales)
    assert torch.equal(found.values.cpu(), expected.values)


@BITS
@pytest.mark.parametrize("biased", [True, False])
def test_slices_are_the_reference(biased, bits, monkeypatch):
    arguments = arguments_of(torch.bfloat16, 20, 37, 70, 32, biased, bits)
    monkeypatch.setattr(integer, "SLICE_BYTES", 70 * 2 * 8)
    monkeypatch.setattr(integer, "MANY_ROWS", 20)
    monkeypatch.setattr(integer, "FEW_ROWS", 19)
    with launching.recording() as launches:
        on_device(triton.linear, **arguments)
    assert [launch.kernel.fn.__name__ for launch in launches] == ["dequantise"] * 5
    made = [launch.arguments[4] for launch in launches]
    assert {tensor.dtype for tensor in made} == {torch.bfloat16}
    assert max(tensor.nbytes for tensor in made) == integer.SLICE_BYTES
    result = on_device(triton.linear, **arguments)
    assert_close("y", reference.linear(**arguments), result, TOLERANCE[torch.bfloat16])


def kernels_of(dtype, rows, bits, outputs=4096, inputs=256):
    weight = quantise(torch.randn(outputs, inputs), bits=bits)
    with launching.recording() as launches:
        triton.linear(torch.zeros(rows, inputs, dtype=dtype), weight)
    return {launch.kernel.fn.__name__ for launch in launches}


@BITS
def test_rows_decide_how_they_are_multiplied(bits):
    for rows, kernel in (
        (1, "integer_row_product"), (2, "integer_product"), (64, "integer_product"),
        (511, "integer_product"), (512, "dequantise"),
    ):  # fmt: skip
        assert kernels_of(torch.bfloat16, rows, bits) == {kernel}, rows
    assert kernels_of(torch.float32, 512, bits) == {"integer_product"}, "no copy in float32"
    assert kernels_of(torch.bfloat16, 0, bits) == set()


@pytest.mark.parametrize("rows", [1, 2, 64, 65, 511, 512, 8192])
@DTYPES
@BITS
def test_candidates_are_few_and_different(dtype, rows, bits):
    found = integer.candidates(rows, 4096, dtype)
    if rows == 1:
        found = integer.row_candidates(256, dtype, bits)
    keys = [tuple(sorted(config.items())) for config in found]
    assert len(set(keys)) == len(keys) <= 16
    assert dtype != torch.float32 or integer.SLICES not in found, "a slice would be float32"
    for config in found:
        if "block_i" in config:
            assert config["block_i"] % max(GROUP_SIZES) == 0
            beside = integer.outputs_beside(config["block_i"], config["num_warps"], bits)
            assert config["block_o"] % beside == 0, "whole outputs for each thread"


def test_a_narrow_matrix_has_more_programs():
    narrow, wide = (
        integer.candidates(8, 2560, torch.bfloat16),
        integer.candidates(8, 10240, torch.float16),
    )
    assert narrow[0]["block_o"] < wide[0]["block_o"]


@BITS
def test_a_row_may_be_multiplied_by_matrix_units(bits):
    arguments = arguments_of(torch.bfloat16, 1, 20, 130, 64, bits=bits)
    with tuning.candidate(len(integer.ROW[bits])), launching.recording() as launches:
        on_device(triton.linear, **arguments)
    assert [launch.kernel.fn.__name__ for launch in launches] == ["integer_product"]
    with tuning.candidate(len(integer.ROW[bits])):
        result = on_device(triton.linear, **arguments)
    assert_close("y", reference.linear(**arguments), result, 2**-8)
