"""The norms' Triton kernels against their definitions."""

import pytest
import torch
from ops_cases import make_case
from triton_cases import DTYPES, TOLERANCE, here, launching, on_device

from sidewinder.ops.add_rows import reference as add_reference
from sidewinder.ops.add_rows import triton as add_triton
from sidewinder.ops.gated_rms_norm import reference as gated_reference
from sidewinder.ops.gated_rms_norm import triton as gated_triton
from sidewinder.ops.gated_squares import reference as squares_reference
from sidewinder.ops.gated_squares import triton as squares_triton
from sidewinder.ops.rms_norm import reference, triton
from sidewinder.ops.scaled_rows import reference as scaled_reference
from sidewinder.ops.scaled_rows import triton as scaled_triton
from sidewinder.ops.with_scalar import reference as message_reference
from sidewinder.ops.with_scalar import triton as message_triton
from sidewinder.testing import assert_close


@DTYPES
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("residual_dtype", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [1, 77, 128])
def test_rms_norm_is_the_reference(dtype, weighted, residual_dtype, width):
    case = make_case([3], seed=width)
    arguments = {
        "x": case.strided(3, width, dtype=dtype),
        "weight": case.randn(width, dtype=dtype) if weighted else None,
        "eps": 1e-5,
    }
    if residual_dtype is None:
        result = on_device(triton.rms_norm, **arguments)
        assert_close("y", reference.rms_norm(**arguments), result, TOLERANCE[dtype])
        return
    wide = torch.promote_types(dtype, residual_dtype)
    arguments["residual"] = case.strided(3, width, dtype=wide)
    expected, expected_sum = reference.rms_norm(**arguments)
    result, total = on_device(triton.rms_norm, **arguments)
    assert_close("y", expected, result, TOLERANCE[dtype])
    assert result.dtype == expected.dtype
    assert torch.equal(expected_sum, total)


@DTYPES
@pytest.mark.parametrize(("group_size", "groups"), [(13, 3), (32, 2), (5, 1)])
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_gated_rms_norm_is_the_reference(dtype, group_size, groups, norm_before_gate):
    width = group_size * groups
    case = make_case([3], seed=width)
    arguments = {
        "x": case.strided(3, width, dtype=dtype),
        "z": case.strided(3, width, dtype=dtype),
        "weight": case.randn(width, dtype=dtype),
        "eps": 1e-5,
        "group_size": group_size,
        "norm_before_gate": norm_before_gate,
    }
    result = on_device(gated_triton.gated_rms_norm, **arguments)
    assert_close("y", gated_reference.gated_rms_norm(**arguments), result, TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("width", [1, 77, 128])
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_gated_squares_are_the_reference(dtype, width, norm_before_gate):
    case = make_case([3], seed=width)
    arguments = {
        "x": case.strided(3, width, dtype=dtype),
        "z": case.strided(3, width + 2, dtype=dtype)[:, 1:-1],
        "weight": case.randn(width),
        "norm_before_gate": norm_before_gate,
    }
    expected, expected_squares = squares_reference.gated_squares(**arguments)
    result, squares = on_device(squares_triton.gated_squares, **arguments)
    assert result.dtype == dtype
    assert (squares.dtype, squares.shape) == (torch.float32, (3, 1))
    assert_close("u", expected, result, TOLERANCE[dtype])
    assert_close("squares", expected_squares, squares, TOLERANCE[torch.float32])


@DTYPES
@pytest.mark.parametrize("width", [1, 77, 1500, 2048], ids=lambda n: f"{n} columns")
def test_a_sum_of_two_is_the_reference(dtype, width):
    case = make_case([3], seed=width)
    x, y = case.strided(3, width, dtype=dtype), case.strided(3, width, dtype=dtype)
    total = on_device(add_triton.add_rows, x=x, y=y)
    assert total.dtype == dtype
    assert torch.equal(add_reference.add_rows(x, y), total)


@DTYPES
@pytest.mark.parametrize("width", [1, 77, 1500, 2048], ids=lambda n: f"{n} columns")
def test_scaled_rows_are_the_reference(dtype, width):
    case = make_case([3], seed=width)
    for parts, kind in ((1, torch.float32), (4, dtype), (37, dtype)):
        arguments = {
            "x": case.strided(3, width, dtype=dtype),
            "mean_squares": case.strided(3, parts, dtype=kind).abs(),
            "eps": 1e-5,
        }
        result = on_device(scaled_triton.scaled_rows, **arguments)
        assert result.dtype == dtype
        assert torch.equal(scaled_reference.scaled_rows(**arguments), result), parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [1, 77, 1022, 1023, 2048], ids=lambda n: f"{n} columns")
def test_a_message_with_a_scalar_is_the_reference(dtype, width):
    case = make_case([3], seed=width)
    for rank, ranks in ((0, 1), (0, 2), (1, 2), (2, 5)):
        arguments = {
            "partial": case.strided(3, width, dtype=dtype),
            "squares": case.strided(3, 1).abs() * 1000,
            "divisor": 2560,
            "rank": rank,
            "ranks": ranks,
        }
        result = on_device(message_triton.with_scalar, **arguments)
        assert result.dtype == dtype
        assert torch.equal(message_reference.with_scalar(**arguments), result), (rank, ranks)


def test_partial_sums_are_copied_bit_for_bit():
    """Subnormal and not finite values too."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(64, 1024)
    partial, squares = here(bits).view(torch.bfloat16), here(torch.ones(64, 1))
    message = message_triton.with_scalar(partial, squares, 1.0, 0, 2)
    assert torch.equal(message[:, :1024].contiguous().view(torch.int16).cpu(), bits)


def test_a_few_columns_are_one_program_and_many_several():
    for width, programs in ((77, 1), (1024, 1), (1025, 2), (2560, 3)):
        x, one = here(torch.ones(2, width)), here(torch.ones(2, 1))
        with launching.recording() as launches:
            scaled_triton.scaled_rows(x, one, 1e-5)
            message_triton.with_scalar(x[:, 1:], one, 1.0, 0, 2)
        assert [launch.grid for launch in launches] == [(2, programs)] * 2
