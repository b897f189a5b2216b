import threading
import time

import pytest
import torch

from sidewinder.testing import run_ranks


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_sums_are_the_same_bits_on_every_rank(size):
    terms = torch.randn(size, 5, 7)
    sums = run_ranks(size, lambda tp, c: c.all_reduce(terms[tp.rank].clone()))
    assert torch.allclose(sums[0], terms.sum(0), atol=1e-6)
    assert all(torch.equal(sums[0], other) for other in sums)


def test_a_result_may_be_changed_without_touching_the_others():
    def rank(tp, c):
        first = c.all_reduce(torch.ones(3))
        first += tp.rank
        return c.all_reduce(torch.ones(3))

    assert all((total == 2).all() for total in run_ranks(2, rank))


def test_gathering_takes_unequal_shares_in_rank_order():
    sizes = [3, 1, 2]
    whole = torch.arange(12.0).view(2, 6)
    parts = whole.split(sizes, dim=-1)
    for joined in run_ranks(3, lambda tp, c: c.all_gather(parts[tp.rank], sizes)):
        assert torch.equal(joined, whole)


@pytest.mark.parametrize("root", [0, 2])
def test_broadcast_gives_the_roots_value(root):
    def rank(tp, c):
        return c.broadcast(torch.full((2,), float(tp.rank)), root)

    assert all((value == root).all() for value in run_ranks(3, rank))


def test_subgroups_sum_among_themselves():
    def rank(tp, c):
        pair = c.subgroup([[0, 1], [2], [3, 4]])
        return pair.tp.size, float(pair.all_reduce(torch.tensor(float(tp.rank))))

    assert run_ranks(5, rank) == [(2, 1.0), (2, 1.0), (1, 2.0), (2, 7.0), (2, 7.0)]


def test_a_failing_rank_releases_the_others_and_is_the_one_reported():
    def rank(tp, c):
        pair = c.subgroup([[0, 1], [2]])
        if tp.rank == 1:
            raise KeyError("the cause")
        return pair.all_reduce(torch.ones(1)) + c.all_reduce(torch.ones(1))

    with pytest.raises(KeyError, match="the cause"):
        run_ranks(3, rank)


def test_a_missing_rank_is_given_up_on():
    def rank(tp, c):
        return None if tp.rank == 0 else c.barrier()

    with pytest.raises(threading.BrokenBarrierError):
        run_ranks(2, rank, timeout_s=0.2)


def test_one_rank_runs_at_a_time_unless_told_otherwise():
    running, most = [], []

    def rank(tp, c):
        for _ in range(5):
            running.append(tp.rank)
            time.sleep(0.002)
            most.append(len(running))
            running.remove(tp.rank)
            c.barrier()

    run_ranks(3, rank)
    assert set(most) == {1}
    met = threading.Barrier(2, timeout=20)
    run_ranks(2, lambda *_: met.wait(), in_turns=False)
