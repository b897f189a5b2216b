"""Ranks as threads of one process: the tests' way to run every shard together."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives, SingleRank
from sidewinder.collectives.rank_order import sum_in_rank_order
from sidewinder.parallel.group import TensorParallel


class Turns:
    """Of several threads one runs at a time, until it waits for the others.

    Threads that compute at the same time hand Python's global lock around at every operation: in
    turns they take a third less of the processor's time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Run while no other thread does."""
        self._take()
        try:
            yield
        finally:
            self._give()

    @contextmanager
    def given(self) -> Iterator[None]:
        """Wait while others run; for a thread that has not taken its turn nothing changes."""
        if self._holder != threading.get_ident():
            yield
            return
        self._give()
        try:
            yield
        finally:
            self._take()

    def _take(self) -> None:
        self._lock.acquire()
        self._holder = threading.get_ident()

    def _give(self) -> None:
        self._holder = None
        self._lock.release()


class ThreadGroup:
    """What the threads of one group share: a barrier, and one place per rank.

    Args:
        size: number of ranks.
        timeout_s: seconds after which a rank that waits for the others gives up.
        turns: of threads that run one at a time; a thread that has not taken its turn just runs.
    """

    def __init__(self, size: int, timeout_s: float = 60.0, turns: Turns | None = None) -> None:
        self.size = size
        self.timeout_s = timeout_s
        self.turns = turns or Turns()
        self._barrier = threading.Barrier(size, timeout=timeout_s)
        self._places: list[Any] = [None] * size
        self._subgroups: list[ThreadGroup] = []

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order. Call `wait` before changing what was given."""
        self._places[rank] = value
        self.wait()
        return list(self._places)

    def wait(self) -> None:
        """Return once every rank has called; BrokenBarrierError if one has failed or is late."""
        with self.turns.given():
            self._barrier.wait()

    def subgroup(self, size: int) -> "ThreadGroup":
        """A smaller group that breaks when this one does."""
        group = ThreadGroup(size, self.timeout_s, self.turns)
        self._subgroups.append(group)
        return group

    def abort(self) -> None:
        """Break the barrier, so that ranks that wait (or will) fail instead of hanging."""
        self._barrier.abort()
        for group in self._subgroups:
            group.abort()


class ThreadCollectives(Collectives):
    """The collectives of one thread; sums in rank order, so bit-identical everywhere.

    Args:
        group: shared by all ranks.
        rank: this thread's.
    """

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        self.path = "threads"
        self.tp = TensorParallel(rank, group.size)
        self._group = group

    def all_reduce(self, x: Tensor) -> Tensor:
        total = sum_in_rank_order(torch.stack(self._group.exchange(self.tp.rank, x)))
        self._group.wait()
        return total

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        parts = self._group.exchange(self.tp.rank, x)
        assert [part.shape[-1] for part in parts] == list(sizes)
        joined = torch.cat(parts, dim=-1)
        self._group.wait()
        return joined

    def all_to_all(self, x: Tensor) -> Tensor:
        parts = self._group.exchange(self.tp.rank, x)
        mine = torch.stack([part[self.tp.rank] for part in parts])
        self._group.wait()
        return mine

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        value: Tensor = self._group.exchange(self.tp.rank, x)[root].clone()
        self._group.wait()
        return value

    def barrier(self) -> None:
        self._group.wait()

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Collectives:
        mine = next(list(ranks) for ranks in partition if self.tp.rank in ranks)
        leads = mine[0] == self.tp.rank
        made = self._group.subgroup(len(mine)) if leads and len(mine) > 1 else None
        groups = self._group.exchange(self.tp.rank, made)
        self._group.wait()
        if len(mine) == 1:
            return SingleRank()
        return ThreadCollectives(groups[mine[0]], mine.index(self.tp.rank))

    def close(self) -> None:
        return None
