import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, LEVELS, _native, kernels_of
from ops_cases import make_case

from sidewinder.ops import native_linear
from sidewinder.quantise import GROUP_SIZES, quantise
from sidewinder.testing import assert_close

ROWS = st.one_of(st.integers(1, 5), st.integers(1, 70), st.just(130))
INPUTS = st.one_of(st.integers(1, 70), st.integers(1000, 1100))


def _linear(x, weight, bias=None, scales=None, group_size=32):
    """Our kernel whatever the number of rows; the dispatch would leave some to torch."""
    y = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype)
    _native.linear(x, weight, scales, bias, y, group_size)
    return y


@LEVELS
@DTYPES
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=["wf32", "wbf16"])
@settings(max_examples=12)
@given(ROWS, INPUTS, st.integers(1, 60), st.booleans(), st.integers(0, 99))
def test_linear_is_the_exact_product(
    level, dtype, weight_dtype, rows, inputs, outputs, biased, seed
):
    case = make_case([rows], seed)
    x = case.strided(rows, inputs, dtype=dtype)
    # Zamba's heads use column slices of a wider weight.
    weight = case.strided(outputs, inputs, dtype=weight_dtype)
    bias = case.randn(outputs, dtype=weight_dtype) if biased else None
    expected = x.double() @ weight.double().T
    # What is summed, without its signs: a sum that cancels is no more exact than its terms.
    magnitude = x.double().abs() @ weight.double().abs().T
    if bias is not None:
        expected, magnitude = expected + bias.double(), magnitude + bias.double().abs()
    with kernels_of(level):
        result = _linear(x, weight, bias)
    assert result.shape == expected.shape
    rounding = 0 if dtype == torch.float32 else 2**-8 * expected.abs()
    assert ((result.double() - expected).abs() <= 2**-22 * magnitude + rounding).all()


@LEVELS
@pytest.mark.parametrize("bits", [8, 4])
@settings(max_examples=12)
@given(
    ROWS, INPUTS, st.integers(1, 60), st.booleans(), st.sampled_from(GROUP_SIZES),
    st.integers(0, 99),
)  # fmt: skip
def test_an_integer_linear_is_the_product_with_the_dequantised_weight(
    level, bits, rows, inputs, outputs, biased, group_size, seed
):
    case = make_case([rows], seed)
    x, bias = case.strided(rows, inputs), case.randn(outputs) if biased else None
    weight = quantise(case.randn(outputs, inputs), group_size, bits)
    expected = x.double() @ weight.dequantise().double().T
    if bias is not None:
        expected = expected + bias.double()
    with kernels_of(level):
        result = native_linear.linear(x, weight, bias)
    if rows > 8:
        assert_close("y", expected, result, 3e-6)
        return
    # Few rows of x are rounded to 16 bits: each value by 2^-16 of its group's largest at most.
    rounding = 2**-16 * x.double().abs().amax(1) * weight.dequantise().double().abs().sum(1).max()
    assert ((result.double() - expected).abs().amax(1) <= rounding + 1e-5).all()


@LEVELS
@DTYPES
def test_a_row_does_not_depend_on_the_batch_around_it(level, dtype):
    case = make_case([70], seed=0)
    x, weight = case.randn(70, 1100, dtype=dtype), case.randn(50, 1100, dtype=dtype)
    with kernels_of(level):
        alone = torch.cat([_linear(row[None], weight) for row in x])
        for rows in (2, 3, 4, 5, 6, 7, 13, 70):
            assert torch.equal(_linear(x[:rows], weight), alone[:rows]), f"{rows} rows"


@LEVELS
@pytest.mark.parametrize("kind", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_spoils_its_row_only(level, kind, rows, value):
    case = make_case([rows], seed=0)
    x, wide = case.randn(rows, 200), case.randn(7, 200)
    x[rows - 1, 150] = value
    rounded = {"int8": quantise(wide), "int4": quantise(wide, bits=4)}
    weight = ({"f32": wide, "bf16": wide.bfloat16()} | rounded)[kind]
    with kernels_of(level):
        y = native_linear.linear(x, weight)
    assert not y[rows - 1].isfinite().any()
    assert y[: rows - 1].isfinite().all()


def test_int4_rows_of_another_width_are_refused():
    weight, y = quantise(torch.ones(3, 40), bits=4), torch.empty(2, 3)
    arguments = weight.scales, None, y, 32
    _native.linear(torch.ones(2, 40), weight.values, *arguments, 4)
    with pytest.raises(ValueError, match="weight has shape"):
        _native.linear(torch.ones(2, 31), weight.values, *arguments, 4)
    with pytest.raises(ValueError, match="weight is int8, not uint8"):
        _native.linear(torch.ones(2, 40), weight.values.view(torch.int8), *arguments, 4)
    with pytest.raises(ValueError, match="weight has shape"):
        _native.linear(torch.ones(2, 40), weight.values, *arguments, 8)


@LEVELS
def test_no_rows_give_no_rows(level):
    with kernels_of(level):
        assert _linear(torch.ones(0, 8), torch.ones(3, 8)).shape == (0, 3)
