"""Linear maps with packed weights, on the levels that have them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import ALL_LEVELS, TOLERANCE, _native, _runs_here, kernels_of
from ops_cases import make_case

from sidewinder.ops import native_linear
from sidewinder.packing import pack
from sidewinder.quantise import GROUP_SIZES, QuantisedWeight, quantise
from sidewinder.testing import assert_close

LEVEL = "avx512_bf16"
ROWS = st.one_of(st.integers(1, 30), st.sampled_from([63, 130, 512, 513]))
INPUTS = st.one_of(st.integers(1, 70), st.integers(250, 300))
OUTPUTS = st.one_of(st.integers(1, 70), st.integers(120, 200))

INTEGER_LEVELS = [level for level in (LEVEL, "avx512", "avx2") if _runs_here(level)]
"""That read packed weights in int8 and int4; those in bfloat16 are read on one level alone."""

here = pytest.mark.skipif(not _runs_here(LEVEL), reason=f"this processor has no {LEVEL}")


@here
@settings(max_examples=40)
@given(ROWS, INPUTS, OUTPUTS, st.booleans(), st.integers(0, 99))
def test_bf16_is_the_exact_product(rows, inputs, outputs, biased, seed):
    case = make_case([rows], seed)
    x = case.strided(rows, inputs, dtype=torch.bfloat16)
    weight = case.randn(outputs, inputs, dtype=torch.bfloat16)
    bias = case.randn(outputs, dtype=torch.bfloat16) if biased else None
    expected = x.double() @ weight.double().T
    if bias is not None:
        expected = expected + bias.double()
    packed = pack(weight)
    with kernels_of(LEVEL):
        result = native_linear.linear(x, packed, bias)
    assert_close("y", expected, result, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("level", INTEGER_LEVELS)
@settings(max_examples=40)
@given(ROWS, INPUTS, OUTPUTS, st.booleans(), st.sampled_from(GROUP_SIZES), st.integers(0, 99))
def test_int8_is_the_product_with_the_dequantised_weight(
    level, rows, inputs, outputs, biased, group_size, seed
):
    case = make_case([rows], seed)
    x, bias = case.strided(rows, inputs), case.randn(outputs) if biased else None
    weight = quantise(case.randn(outputs, inputs), group_size)
    wide = weight.dequantise().double()
    expected = x.double() @ wide.T
    if bias is not None:
        expected = expected + bias.double()
    packed = pack(weight)
    with kernels_of(level):
        result = native_linear.linear(x, packed, bias)
    # x is rounded to 16 bits: each value by 2^-16 of its group's largest at most, and a little.
    rounding = 1.01 * 2**-16 * x.double().abs().amax(1) * wide.abs().sum(1).max()
    assert ((result.double() - expected).abs().amax(1) <= rounding + 1e-5).all()


def in_eight_bits(x, group_size):
    """Rows whose groups have the largest value at ±127, the others at the nearest integer."""
    padded = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % group_size))
    groups = padded.unflatten(1, (-1, group_size))
    scales = groups.abs().amax(-1, keepdim=True) / 127
    integers = (groups * (1 / scales).nan_to_num(posinf=0)).round()
    return (integers.double() * scales).flatten(1)[:, : x.shape[1]]


@pytest.mark.parametrize("level", INTEGER_LEVELS)
@settings(max_examples=40)
@given(
    ROWS, INPUTS, OUTPUTS, st.booleans(), st.sampled_from(GROUP_SIZES),
    st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99),
)  # fmt: skip
def test_int4_is_the_product_of_rows_in_eight_bits_with_the_dequantised_weight(
    level, rows, inputs, outputs, biased, group_size, dtype, seed
):
    case = make_case([rows], seed)
    x, bias = case.strided(rows, inputs, dtype=dtype), case.randn(outputs) if biased else None
    weight = quantise(case.randn(outputs, inputs), group_size, 4)
    wide, near = weight.dequantise().double(), in_eight_bits(x, group_size)
    assert ((near - x).abs() <= 2**-7 * x.double().abs().amax(1, keepdim=True)).all()
    expected = near @ wide.T
    if bias is not None:
        expected = expected + bias.double()
    with kernels_of(level):
        result = native_linear.linear(x, pack(weight), bias)
    magnitude = near.abs() @ wide.T.abs() + (0 if bias is None else bias.double().abs())
    rounding = 0 if dtype == torch.float32 else 2**-8 * expected.abs()
    assert ((result.double() - expected).abs() <= 2**-20 * magnitude + rounding).all()


KINDS = {"bf16": lambda w: w, "int8": quantise, "int4": lambda w: quantise(w, bits=4)}
kinds = pytest.mark.parametrize(
    ("level", "kind"),
    [(level, kind) for level in INTEGER_LEVELS for kind in KINDS
     if kind != "bf16" or level == LEVEL],
)  # fmt: skip


@kinds
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_is_the_same_in_every_batch_and_on_any_number_of_threads(level, kind, threads):
    case = make_case([1100], seed=0)
    x = case.randn(1100, 301, dtype=torch.bfloat16)
    weight = case.randn(90, 301, dtype=torch.bfloat16)
    packed = pack(KINDS[kind](weight))
    with kernels_of(level):
        alone = torch.cat([native_linear.linear(row[None], packed) for row in x[:40]])
    with kernels_of(level, threads):
        for rows in (1, 2, 3, 5, 6, 7, 12, 13, 40, 1100):
            result = native_linear.linear(x[:rows], packed)
            n = min(rows, 40)
            assert torch.equal(result[:n], alone[:n]), f"{rows} rows"


@here
def test_parts_give_parts_of_the_result():
    case = make_case([9], seed=1)
    x = case.randn(9, 96, dtype=torch.bfloat16)
    weight = case.randn(200, 96, dtype=torch.bfloat16)
    packed, cut = pack(weight), pack(weight[:, 32:64])
    with kernels_of(LEVEL):
        whole = native_linear.linear(x, packed)
        assert torch.equal(native_linear.linear(x, packed.rows(slice(64, 200))), whole[:, 64:])
        part = native_linear.linear(x[:, 32:64], packed.columns(slice(32, 64)))
        assert torch.equal(part, native_linear.linear(x[:, 32:64], cut))


@kinds
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(level, kind, bad):
    case = make_case([7], seed=2)
    x, weight = case.randn(7, 70, dtype=torch.bfloat16), case.randn(65, 70, dtype=torch.bfloat16)
    packed = pack(KINDS[kind](weight))
    with kernels_of(level):
        clean = native_linear.linear(x, packed)
        x[3, 69] = bad
        result = native_linear.linear(x, packed)
    assert not result[3].isfinite().any()
    keep = [0, 1, 2, 4, 5, 6]
    assert torch.equal(result[keep], clean[keep])


@here
def test_no_rows_are_no_work():
    packed = pack(torch.ones(3, 5).bfloat16())
    assert native_linear.linear(torch.ones(0, 5).bfloat16(), packed).shape == (0, 3)


@here
def test_wrong_arguments_are_refused():
    packed, y = pack(torch.ones(65, 6).bfloat16()), torch.empty(2, 65, dtype=torch.bfloat16)
    x = torch.ones(2, 6).bfloat16()
    with pytest.raises(ValueError, match="weight has shape"):
        _native.linear_packed(x, packed.data[:1], None, None, y)
    with pytest.raises(ValueError, match="x is"):
        _native.linear_packed(x.float(), packed.data, None, None, y)
    rounded = pack(quantise(torch.ones(65, 6), bits=4))
    with pytest.raises(ValueError, match="bits: 8 or 4"):
        _native.linear_packed(x, rounded.data, rounded.scales, None, y, 32, 16)
    with pytest.raises(ValueError, match="weight has shape"):
        _native.linear_packed(x, rounded.data, rounded.scales, None, y, 32, 8)


@pytest.mark.skipif(len(INTEGER_LEVELS) < 2, reason="this processor has one level that packs them")
@pytest.mark.parametrize("bits", [8, 4])
def test_integers_have_the_same_bits_on_all_levels(bits):
    case, results = make_case([9], seed=3), []
    x, weight = case.randn(9, 300), pack(quantise(case.randn(100, 300), bits=bits))
    for level in INTEGER_LEVELS:
        with kernels_of(level):
            results.append(native_linear.linear(x, weight))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("level", INTEGER_LEVELS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize(("bits", "largest_weight", "largest_x"), [(8, 127, 32639), (4, 7, 127)])
def test_sums_of_the_largest_integers_are_exact(level, group_size, bits, largest_weight, largest_x):
    """Alike in sign, so that no sum is smaller than it can be."""
    groups = 2
    inputs = groups * group_size
    integers = torch.full((70, inputs), largest_weight, dtype=torch.int8)
    scales = torch.ones(70, groups, dtype=torch.bfloat16)
    weight = pack(QuantisedWeight.of(integers, scales, group_size, bits))
    for sign in (1, -1):
        with kernels_of(level):
            result = native_linear.linear(torch.full((3, inputs), sign * float(largest_x)), weight)
        # A group's exact sum is rounded to float32 once; two of them are twice as much.
        assert torch.equal(
            result, torch.full((3, 70), sign * largest_x * largest_weight * inputs).float()
        )


@pytest.mark.parametrize("level", [level for level in ALL_LEVELS if _runs_here(level)])
def test_other_levels_refuse(level):
    bf16, y = pack(torch.ones(3, 4).bfloat16()), torch.empty(2, 3, dtype=torch.bfloat16)
    packed = {16: bf16, **{bits: pack(quantise(torch.ones(3, 4), bits=bits)) for bits in (8, 4)}}
    x = torch.ones(2, 4).bfloat16()
    with kernels_of(level):
        for bits, weight in packed.items():
            takes = level == LEVEL or (bits != 16 and level in INTEGER_LEVELS)
            assert _native.has_packed(bits) == takes
            if not takes:
                message = f"{level} has no packed weights of {bits} bits"
                with pytest.raises(ValueError, match=message):
                    _native.linear_packed(x, weight.data, weight.scales, None, y, 32, weight.bits)
