"""Collectives between real ranks: exact, in rank order, the same bits everywhere."""

import pytest
import torch

SIZES = (2, 3, 4)
SHAPES = ((), (0,), (1,), (7, 5), (3, 1, 11), (40_003,))


@pytest.mark.parametrize("size", SIZES)
def test_sum_is_in_rank_order_on_every_rank(pool, size, transport):
    for seed, shape in enumerate(SHAPES):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            assert pool(size, transport).call("check_sum", shape, dtype, seed)


@pytest.mark.parametrize("size", SIZES)
def test_gather_of_uneven_shares(pool, size, transport):
    for sizes in ([3, 2, 2, 1], [1, 0, 5, 2], [4, 4, 4, 4]):
        for dtype in (torch.float32, torch.bfloat16, torch.int64):
            assert pool(size, transport).call("check_gather", 6, sizes[:size], dtype)


@pytest.mark.parametrize("size", SIZES)
def test_broadcast_from_every_root(pool, size, transport):
    for root in range(size):
        assert pool(size, transport).call("check_broadcast", root)


@pytest.mark.parametrize(
    "partition", [[[0, 1], [2, 3]], [[0, 3], [1, 2]], [[0], [1, 2, 3]], [[0, 1, 2, 3]]], ids=str
)
def test_subgroups_sum_among_themselves(pool, partition, transport):
    assert pool(4, transport).call("check_subgroup", partition)
    assert pool(4, transport).call("check_sum", (9,), torch.float32, 1)


@pytest.mark.parametrize("size", SIZES)
def test_results_on_their_way(pool, size, transport):
    assert pool(size, transport).call("check_started")
