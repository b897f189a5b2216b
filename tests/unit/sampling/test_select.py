"""Selecting the largest values against sorting whole rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidewinder.sampling import select


def rows_of(seed, columns, ties):
    rows = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed)) * 3
    return rows.round() if ties else rows


@given(st.integers(0, 9999), st.sampled_from([1, 63, 64, 65, 500]), st.booleans(), st.data())
def test_largest_is_the_head_of_a_stable_sort(seed, columns, ties, data):
    rows = rows_of(seed, columns, ties)
    n = data.draw(st.integers(1, columns))
    values, ids = select.largest(rows, n)
    expected, order = rows.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(values, expected[:, :n])
    assert torch.equal(ids, order[:, :n])


@pytest.mark.parametrize("columns", [1, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_first_max_is_the_first_of_equals(columns, dtype):
    rows = rows_of(0, columns, ties=True).to(dtype)
    best, ids = select.first_max(rows)
    for row, value, position in zip(rows.tolist(), best.tolist(), ids.tolist(), strict=True):
        assert (value, position) == (max(row), row.index(max(row)))


def test_first_max_finds_nan():
    rows = torch.tensor([[1.0, torch.nan, 3.0]])
    best, ids = select.first_max(rows)
    assert bool(best.isnan())
    assert ids.tolist() == [1]


def test_at_least_pads_short_rows():
    rows = torch.tensor([[5.0, 1.0, 4.0], [0.0, 2.0, 9.0]])
    values, positions, counts = select.at_least(rows, torch.tensor([4.0, 9.0]))
    assert values.tolist() == [[5.0, 4.0], [9.0, -torch.inf]]
    assert positions.tolist() == [[0, 2], [2, 3]]
    assert counts.tolist() == [2, 1]


def test_a_threshold_beyond_the_blocks_is_no_limit():
    maxima = select.block_maxima(rows_of(1, 130, ties=False))
    assert maxima.shape == (3, select.n_blocks(130))
    assert torch.isneginf(select.threshold(maxima, 4)).all()
