import pytest
import torch

from sidewinder.collectives.base import SingleRank
from sidewinder.collectives.rank_order import sum_in_rank_order
from sidewinder.parallel.group import TensorParallel


def test_sum_is_taken_in_rank_order():
    parts = torch.tensor([[1e8], [-1e8], [1.0]])
    assert sum_in_rank_order(parts).item() == 1.0
    assert sum_in_rank_order(parts[[2, 0, 1]]).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_sums_round_once(dtype):
    small = torch.finfo(dtype).eps / 4
    parts = torch.tensor([[1.0], [small], [small], [small]], dtype=dtype)
    assert sum_in_rank_order(parts).item() == 1.0 + torch.finfo(dtype).eps
    assert sum_in_rank_order(parts).dtype == dtype


def test_intermediate_overflow_of_float16_is_harmless():
    parts = torch.tensor([[60_000.0], [60_000.0], [-60_000.0]], dtype=torch.float16)
    assert sum_in_rank_order(parts).item() == 60_000.0


def test_parts_are_left_alone():
    parts = torch.ones(3, 4)
    sum_in_rank_order(parts)
    assert torch.equal(parts, torch.ones(3, 4))


def test_single_rank_is_the_identity():
    alone, x = SingleRank(), torch.randn(3, 4)
    assert alone.all_reduce(x) is alone.broadcast(x) is alone.all_gather(x, [4]) is x
    assert alone.subgroup([[0]]).tp == TensorParallel(0, 1)
    alone.barrier()
    alone.close()
    with pytest.raises(ValueError, match="SingleRank serves tp=1, not tp=2"):
        SingleRank(TensorParallel(0, 2))
