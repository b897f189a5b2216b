"""Codecs: sizes, accuracy, and the values that break quantisers."""

import pytest
import torch
from codec_cases import (
    GAUSSIAN_DB,
    QUANTISED,
    SHAPES,
    gaussian,
    one_shot,
    round_trip,
    same_bits,
    sqnr_db,
    two_shot,
)
from hypothesis import given
from hypothesis import strategies as st

from sidewinder.ops.codec import CODECS, encode

ALL = tuple(CODECS)
LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    ("name", "per_group", "bits_per_element"),
    [("bf16", 64, 16), ("int8", 130, 8.125), ("int6", 26, 6.5), ("int4", 18, 4.5)],
)
def test_bytes_on_the_wire(name, per_group, bits_per_element):
    codec = CODECS[name]
    assert codec.group_bytes == per_group
    assert 8 * codec.group_bytes / codec.group_size == bits_per_element
    for rows, width in SHAPES:
        for stripes in (1, 2, 3, 4):
            messages = encode(gaussian(rows, width), codec, stripes)
            n_groups = rows * -(-width // codec.group_size)
            assert messages.shape == (stripes, -(-n_groups // stripes) * per_group)
            assert messages.shape[1] == codec.stripe_bytes(rows, width, stripes)
            assert messages.dtype == torch.uint8


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("name", ALL)
def test_gaussian_sums_have_the_theoretical_error(name, ranks):
    parts = gaussian(ranks, 64, 2048)
    exact = parts.double().sum(0)
    tolerance = 0.5 if name in QUANTISED else 1.0
    assert abs(sqnr_db(exact, two_shot(parts, name)) - GAUSSIAN_DB[name]) <= tolerance
    one_rounding = one_shot(parts, name)
    assert sqnr_db(exact, one_rounding) >= GAUSSIAN_DB[name] + 1.8
    for tile in range(0, 64, 8):
        rows = slice(tile, tile + 8)
        assert sqnr_db(exact[rows], one_rounding[rows]) >= GAUSSIAN_DB[name] + 1.8


@pytest.mark.parametrize("name", ALL)
def test_every_tile_of_a_16_bit_sum_is_written(name):
    parts = gaussian(3, 17, 1000, dtype=torch.bfloat16)
    exact = parts.double().sum(0)
    result = two_shot(parts, name)
    assert result.dtype == torch.bfloat16
    for row in range(17):
        for start in range(0, 1000, 125):
            tile = row, slice(start, start + 125)
            assert sqnr_db(exact[tile], result[tile]) >= GAUSSIAN_DB[name] - 4


@pytest.mark.parametrize("name", QUANTISED)
def test_outliers_only_disturb_their_own_group(name):
    x = gaussian(16, 1024)
    x[:, 0] *= 1000
    codec = CODECS[name]
    rest = slice(codec.group_size, None)
    assert sqnr_db(x[:, rest], round_trip(x, name)[:, rest]) >= GAUSSIAN_DB[name]


@pytest.mark.parametrize("name", QUANTISED)
def test_whole_numbers_with_the_full_range_arrive_unchanged(name):
    codec = CODECS[name]
    x = torch.arange(3 * 300).view(3, 300).remainder(2 * codec.levels).float() - codec.levels
    x[:, :: codec.group_size] = -codec.levels
    assert torch.equal(round_trip(x, name), x)
    assert torch.equal(round_trip(-x, name), -x)
    assert torch.equal(round_trip(x * 2.0**-40, name), x * 2.0**-40)
    assert torch.equal(round_trip(x.bfloat16(), name), x.bfloat16())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-44, 2.0**-130, 65504.0, 70000.0, -3e38, LARGEST])
def test_constant_groups_of_any_size(name, value):
    x = torch.full((2, 150), value)
    result = round_trip(x, name)
    assert result.isfinite().all() or (name == "bf16" and value == LARGEST)
    if name != "bf16":
        assert torch.allclose(result, x, rtol=0.005, atol=2.0**-126)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(name, bad):
    parts = gaussian(3, 4, 300)
    parts[1, 2, 290] = bad
    for result in (one_shot(parts, name), two_shot(parts, name)):
        assert not result[2, 290].isfinite()
        broken = ~result.isfinite()
        width = 300 % CODECS[name].group_size
        assert int(broken.sum()) == (1 if name == "bf16" else width)
        assert broken[2, 300 - width :].any()


@pytest.mark.parametrize("name", QUANTISED)
def test_an_overflowing_sum_is_not_finite(name):
    parts = torch.full((3, 1, 40), LARGEST)
    assert not two_shot(parts, name).isfinite().any()


@pytest.mark.parametrize("name", ALL)
def test_parts_that_cancel_leave_an_error_of_the_parts_size(name):
    half = gaussian(8, 256)
    parts = torch.stack([half, -half, torch.zeros_like(half)])
    assert torch.equal(one_shot(torch.stack([half, torch.zeros_like(half)]), name) * 0, half * 0)
    assert two_shot(parts, name).abs().max() <= 2 * half.abs().max() / 2 ** min(
        CODECS[name].bits - 1, 8
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [1, 31, 127, 129, 300, 768])
def test_a_row_alone_equals_the_row_in_a_batch(name, width):
    parts = gaussian(4, 9, width, dtype=torch.bfloat16)
    whole = two_shot(parts, name)
    for row in range(9):
        assert torch.equal(two_shot(parts[:, row : row + 1], name)[0], whole[row])


@pytest.mark.parametrize("name", ALL)
def test_the_number_of_stripes_does_not_matter(name):
    parts = gaussian(2, 5, 300)
    results = [two_shot(parts, name, stripes) for stripes in (1, 2, 3, 4, 7)]
    assert all(torch.equal(results[0], other) for other in results)


@given(
    st.sampled_from(QUANTISED),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=140),
)
def test_errors_are_at_most_a_step(name, values):
    x = torch.tensor([values])
    codec = CODECS[name]
    result = round_trip(x, name)
    assert result.isfinite().all()
    for start in range(0, len(values), codec.group_size):
        group = slice(start, start + codec.group_size)
        extreme = float(x[0, group].double().abs().max())
        # A step, and what rounding the scale to eight bits moves the largest integer by.
        bound = max(extreme / codec.levels * 1.51, 2.0**-126)
        assert float((result[0, group].double() - x[0, group].double()).abs().max()) <= bound


@given(
    st.sampled_from(QUANTISED),
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=140),
    st.integers(-20, 20),
)
def test_powers_of_two_scale_through(name, values, exponent):
    x = torch.tensor([values])
    x[x.abs() < 2.0**-60] = 0
    scaled = round_trip(x * 2.0**exponent, name)
    expected = round_trip(x, name) * 2.0**exponent
    assert same_bits(scaled, expected) or torch.equal(scaled, expected)
