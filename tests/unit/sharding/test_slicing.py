"""`reassemble` is the inverse of `shard`; local shapes agree."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.shares import Share, split_units
from sidewinder.sharding.slicing import (
    Band,
    Bands,
    Replicate,
    Split,
    local_shape,
    reassemble,
    shard,
)


@st.composite
def covering_shares(draw, size, parts):
    """One share per rank, in order, covering `[0, size)`, overlapping now and then."""
    cuts = sorted(draw(st.lists(st.integers(0, size), min_size=parts - 1, max_size=parts - 1)))
    edges = [0, *cuts, size]
    shares = []
    for start, stop in pairwise(edges):
        more = draw(st.integers(0, size - stop))
        shares.append(Share(start, stop + more))
    return tuple(shares)


@st.composite
def rules_and_tensors(draw):
    parts, dim = draw(st.integers(1, 5)), draw(st.integers(0, 2))
    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    bands = tuple(
        Band(f"band{index}", "row", size, draw(covering_shares(size, parts)))
        for index, size in enumerate(sizes)
    )
    shape = [draw(st.integers(1, 3)) for _ in range(3)]
    shape[dim] = sum(sizes)
    tensor = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    return Bands(dim, bands), tensor, parts


@given(rules_and_tensors())
def test_reassemble_inverts_shard_of_bands(case):
    rule, tensor, parts = case
    shards = [shard(rule, tensor, TensorParallel(rank, parts)) for rank in range(parts)]
    for rank, part in enumerate(shards):
        assert part.shape == local_shape(rule, tensor.shape, rank)
        assert part.is_contiguous()
    assert torch.equal(reassemble(rule, shards), tensor)


@given(units=st.integers(1, 12), unit=st.integers(1, 3), parts=st.integers(1, 5))
def test_reassemble_inverts_shard_of_splits(units, unit, parts):
    rule = Split(0, "unit", split_units(units, parts, unit))
    tensor = torch.randn(units * unit, 2)
    tensor[0, 0] = torch.nan
    shards = [shard(rule, tensor, TensorParallel(rank, parts)) for rank in range(parts)]
    torch.testing.assert_close(reassemble(rule, shards), tensor, rtol=0, atol=0, equal_nan=True)


def test_bands_are_split_each_on_its_own():
    halves = (Share(0, 2), Share(2, 4))
    rule = Bands(0, (Band("x", "channel", 4, halves), Band("z", "channel", 4, halves)))
    packed = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13])
    assert shard(rule, packed, TensorParallel(1, 2)).tolist() == [2, 3, 12, 13]


def test_replicate_copies():
    tensor = torch.randn(3)
    copy = shard(Replicate(), tensor, TensorParallel(1, 2))
    assert torch.equal(copy, tensor)
    assert copy.data_ptr() != tensor.data_ptr()


def test_ranks_that_disagree_about_a_shared_part_are_found():
    rule = Split(0, "group", (Share(0, 2), Share(1, 3)))
    with pytest.raises(ValueError, match="rank 1 disagrees"):
        reassemble(rule, [torch.tensor([0.0, 1.0]), torch.tensor([1.5, 2.0])])
    with pytest.raises(ValueError, match="rank 1 disagrees"):
        reassemble(Replicate(), [torch.zeros(2), torch.ones(2)])


def test_a_part_of_the_wrong_size_is_found():
    rule = Split(0, "row", (Share(0, 2), Share(2, 3)))
    with pytest.raises(ValueError, match=r"rank 1 holds \(2,\) instead of \(1,\)"):
        reassemble(rule, [torch.zeros(2), torch.zeros(2)])
