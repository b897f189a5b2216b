"""Places of keys and values for single tokens: three ways to the same ones."""

import pytest
import torch

from sidewinder.parallel.group import SINGLE
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import PageTables, pack
from sidewinder.state.decode_index import DecodeBuffers, DecodeIndex
from sidewinder.state.pool import StatePool
from sidewinder.testing import tiny_config

PAGE_SIZE = 4
TABLES = [[6, 1, 3], [5, 2], [0, 7, 9, 8]]


@pytest.fixture
def kv():
    config = tiny_config("zamba")
    dims = LocalDims.of(config, SINGLE)
    return StatePool(config, dims, 3, torch.float32, n_pages=10, page_size=PAGE_SIZE).kv


@pytest.mark.parametrize("starts", [[0, 0, 0], [11, 0, 4], [3, 4, 12], [8, 7, 15]], ids=str)
def test_buffers_and_tables_have_the_places_of_the_index(kv, starts):
    batch = pack([[1]] * 3, [0, 1, 2], starts, TABLES)
    expected = kv.index(batch).singles
    buffers = DecodeBuffers(5, 6, PAGE_SIZE)
    whole = buffers.first(5)
    for part in (whole.write, whole.read, whole.lengths):
        part.fill_(-7)
    buffers.fill(batch.page_tables, starts)
    longest = max(map(len, TABLES))
    pages = torch.tensor([[*table, *[0] * (longest - len(table))] for table in TABLES])
    computed = DecodeIndex.of(PageTables(pages, torch.tensor(starts)), PAGE_SIZE)
    for found in (buffers.first(3), computed):
        assert torch.equal(found.write, expected.write)
        assert torch.equal(found.lengths, expected.lengths)
        for s, length in enumerate(expected.lengths.tolist()):
            assert torch.equal(found.read[s, :length], expected.read[s, :length])
    for part in (whole.write, whole.read, whole.lengths):
        assert (part[3:] == -7).all(), "rows of other batches were written"


def test_buffers_follow_their_sequences():
    """One goes on in its page, needs another, and is followed by one with other pages."""
    buffers = DecodeBuffers(2, 4, PAGE_SIZE)
    index = buffers.first(1)
    steps = ((5,), 2), ((5,), 3), ((5, 2), 4), ((0, 7, 9, 8), 15), ((2,), 0), ((6,), 0)
    for table, start in steps:
        buffers.fill([table], [start])
        places = [page * PAGE_SIZE + i for page in table for i in range(PAGE_SIZE)]
        assert index.read[0, : start + 1].tolist() == places[: start + 1]
        assert index.write.tolist() == [places[start]]
        assert index.lengths.tolist() == [start + 1]


def test_pages_that_are_not_needed_yet_may_be_more_than_there_is_room_for():
    buffers = DecodeBuffers(1, 2, PAGE_SIZE)
    buffers.fill([[4, 3, 1]], [7])
    assert buffers.first(1).read.tolist() == [[16, 17, 18, 19, 12, 13, 14, 15]]


def test_too_few_pages_are_noticed():
    with pytest.raises(AssertionError, match="too few pages"):
        DecodeBuffers(1, 4, PAGE_SIZE).fill([[3]], [4])
