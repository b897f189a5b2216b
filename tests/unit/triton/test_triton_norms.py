"""The norms' Triton kernels against their definitions."""

import pytest
import torch
from ops_cases import make_case
from triton_cases import DTYPES, TOLERANCE, on_device

from sidewinder.ops.gated_rms_norm import reference as gated_reference
from sidewinder.ops.gated_rms_norm import triton as gated_triton
from sidewinder.ops.rms_norm import reference, triton
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
