"""Cutting ranges into shares."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidewinder.sharding.shares import (
    channel_unit,
    split_channels,
    split_units,
)


@given(units=st.integers(1, 300), parts=st.integers(1, 16), unit=st.integers(1, 9))
def test_split_units_covers_in_order_and_differs_by_one_unit(units, parts, unit):
    shares = split_units(units, parts, unit)
    assert [share.start for share in shares[1:]] == [share.stop for share in shares[:-1]]
    assert (shares[0].start, shares[-1].stop) == (0, units * unit)
    sizes = {share.size for share in shares}
    assert max(sizes) - min(sizes) in (0, unit)


@given(channels=st.integers(16, 9000), parts=st.integers(1, 8))
def test_channels_are_cut_at_units_and_balanced(channels, parts):
    unit = channel_unit(channels, parts)
    shares = split_channels(channels, parts)
    assert sum(share.size for share in shares) == channels
    assert all(share.size > 0 and share.start % unit == 0 for share in shares)
    sizes = [share.size for share in shares]
    assert max(sizes) - min(sizes) <= max(1, channels / parts / 8)


@pytest.mark.parametrize(
    ("channels", "parts", "unit", "sizes"),
    [
        (5120, 2, 64, [2560, 2560]),
        (5120, 3, 64, [1728, 1728, 1664]),
        (48, 3, 16, [16, 16, 16]),
        (48, 5, 1, [10, 10, 10, 9, 9]),
        (3, 3, 1, [1, 1, 1]),
        (7424, 8, 32, [928] * 8),
    ],
)
def test_channel_unit_examples(channels, parts, unit, sizes):
    assert channel_unit(channels, parts) == unit
    assert [share.size for share in split_channels(channels, parts)] == sizes
