import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, LEVELS, TOLERANCE, kernels_of
from ops_cases import make_case

from sidewinder.ops import native
from sidewinder.ops.gated_rms_norm import reference as gated_reference
from sidewinder.ops.rms_norm import reference
from sidewinder.testing import assert_close


@LEVELS
@DTYPES
@settings(max_examples=15)
@given(
    st.integers(1, 5), st.integers(1, 200), st.integers(0, 99), st.booleans(),
    st.sampled_from([None, torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_rms_norm_is_the_reference(level, dtype, tokens, width, seed, weighted, residual_dtype):
    case = make_case([tokens], seed)
    x = case.strided(tokens, width, dtype=dtype)
    weight = case.randn(width, dtype=dtype) if weighted else None
    if residual_dtype is None:
        with kernels_of(level):
            result = native.rms_norm(x, weight, 1e-5)
        assert_close("y", reference.rms_norm(x, weight, 1e-5), result, TOLERANCE[dtype])
        return
    wide = torch.promote_types(dtype, residual_dtype)
    residual = case.strided(tokens, width, dtype=wide)
    expected, expected_sum = reference.rms_norm(x, weight, 1e-5, residual)
    with kernels_of(level):
        result, total = native.rms_norm(x, weight, 1e-5, residual)
    assert_close("y", expected, result, TOLERANCE[dtype])
    assert result.dtype == expected.dtype
    assert torch.equal(expected_sum, total)


@LEVELS
@DTYPES
@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_gated_rms_norm_is_the_reference(
    level, dtype, tokens, group_size, groups, norm_before_gate, seed
):
    case = make_case([tokens], seed)
    width = groups * group_size
    x, z = case.strided(tokens, width, dtype=dtype), case.strided(tokens, width, dtype=dtype)
    arguments = (x, z, case.randn(width, dtype=dtype), 1e-5, group_size, norm_before_gate)
    with kernels_of(level):
        result = native.gated_rms_norm(*arguments)
    assert_close("y", gated_reference.gated_rms_norm(*arguments), result, TOLERANCE[dtype])
