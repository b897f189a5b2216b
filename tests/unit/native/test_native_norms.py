import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, LEVELS, TOLERANCE, _native, kernels_of
from ops_cases import make_case

from sidewinder.ops import native
from sidewinder.ops.add_rows import reference as add_reference
from sidewinder.ops.gated_rms_norm import reference as gated_reference
from sidewinder.ops.gated_squares import reference as squares_reference
from sidewinder.ops.rms_norm import reference
from sidewinder.ops.scaled_rows import reference as scaled_reference
from sidewinder.ops.with_scalar import reference as message_reference
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


@LEVELS
@DTYPES
@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 140), st.booleans(), st.integers(0, 99))
def test_gated_squares_are_the_reference(level, dtype, tokens, width, norm_before_gate, seed):
    case = make_case([tokens], seed)
    x, z = case.strided(tokens, width, dtype=dtype), case.strided(tokens, width, dtype=dtype)
    arguments = (x, z, case.randn(width), norm_before_gate)
    expected, expected_squares = squares_reference.gated_squares(*arguments)
    with kernels_of(level):
        result, squares = native.gated_squares(*arguments)
    assert_close("u", expected, result, TOLERANCE[dtype])
    assert_close("squares", expected_squares, squares, TOLERANCE[torch.float32])


@LEVELS
@DTYPES
@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 140), st.integers(1, 9), st.data())
def test_a_message_with_a_scalar_is_the_reference(level, dtype, tokens, width, ranks, data):
    rank, seed = data.draw(st.integers(0, ranks - 1)), data.draw(st.integers(0, 99))
    case = make_case([tokens], seed)
    partial = case.strided(tokens, width, dtype=dtype)
    squares = case.strided(tokens, 1).exp2() * 10.0 ** data.draw(st.integers(-40, 36))
    arguments = (partial, squares, 2560, rank, ranks)
    with kernels_of(level):
        result = native.with_scalar(*arguments)
    assert torch.equal(result, message_reference.with_scalar(*arguments))


@LEVELS
@DTYPES
@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 140), st.integers(0, 99))
def test_a_sum_of_two_is_the_reference(level, dtype, tokens, width, seed):
    case = make_case([tokens], seed)
    x, y = case.strided(tokens, width, dtype=dtype), case.strided(tokens, width, dtype=dtype)
    with kernels_of(level):
        total = native.add_rows(x, y)
    assert total.is_contiguous()
    assert torch.equal(total, add_reference.add_rows(x, y))


@LEVELS
@DTYPES
@settings(max_examples=30)
@given(
    st.integers(1, 5), st.integers(1, 140), st.integers(1, 150), st.booleans(), st.integers(0, 99)
)
def test_scaled_rows_are_the_reference(level, dtype, tokens, width, parts, apart, seed):
    case = make_case([tokens], seed)
    x = case.strided(tokens, width, dtype=dtype)
    mean_squares = case.strided(tokens, parts, dtype=torch.float32 if apart else dtype).abs()
    if not apart:
        message = torch.cat([x, mean_squares], dim=1)
        x, mean_squares = message.split([width, parts], dim=1)
    with kernels_of(level):
        result = native.scaled_rows(x, mean_squares, 1e-5)
    assert result.is_contiguous()
    assert torch.equal(result, scaled_reference.scaled_rows(x, mean_squares, 1e-5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"squares": torch.ones(3, 2)}, r"squares has shape \[ 3 2 \], not \[ 3 1 \]"),
        ({"squares": torch.ones(3, 1, dtype=torch.bfloat16)}, "squares is bfloat16"),
        ({"rank": 2}, "rank is not one of the ranks"),
        ({"rank": -1}, "rank is not one of the ranks"),
        ({"ranks": 3}, r"message has shape \[ 3 9 \], not \[ 3 11 \]"),
        ({"message": torch.ones(3, 9)}, "message is float32, not bfloat16"),
    ],
    ids=["squares", "their dtype", "rank", "rank below", "columns", "dtype"],
)
def test_messages_that_do_not_fit_are_errors(changes, message):
    arguments = {
        "partial": torch.ones(3, 5, dtype=torch.bfloat16),
        "squares": torch.ones(3, 1),
        "divisor": 5.0,
        "rank": 1,
        "ranks": 2,
        "message": torch.ones(3, 9, dtype=torch.bfloat16),
    }
    _native.with_scalar(**arguments)
    with pytest.raises(ValueError, match=message):
        _native.with_scalar(**arguments | changes)
