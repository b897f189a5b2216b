"""Collectives of ranks on one machine over shared memory (native code, `csrc/shm_group.h`)."""

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sidewinder import extension
from sidewinder.collectives.base import Collectives, Pending, SingleRank
from sidewinder.collectives.rank_order import sum_in_rank_order
from sidewinder.parallel.errors import RankFailure
from sidewinder.parallel.group import TensorParallel

native: Any = extension.module if hasattr(os, "memfd_create") else None
"""The native module, where it is built and the system has anonymous shared memory."""

SUM_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}

ONE_SHOT_BYTES = 32 * 1024
"""Above this size each of three or more ranks sums one stripe, instead of every rank all of it.
Between two ranks both ways move the same bytes, and this one takes an exchange more."""
ALWAYS_ONE_SHOT = 1 << 62

OWN_CORES = (4000, 2000)
"""Spins and yields before sleeping when every rank has cores of its own."""
SHARED_CORES = (50, 50)
"""The same when ranks share cores: a rank that spins keeps another from coming."""

SEGMENT_NAME = "sidewinder-collectives"

MOST_RANKS = 64
"""That one sum may have parts of (`kMostRanks` in `csrc/kernels.h`), over TCP as well."""


def create_segment(ranks: int, name: str = SEGMENT_NAME) -> int:
    """Anonymous shared memory for a group; the file descriptor that all its ranks must have.

    Pages exist only once they are used. No file system shows it, so nothing is left after a crash;
    `name` is what debuggers show.
    """
    assert native is not None, "without the native module nobody can use a segment"
    fd = os.memfd_create(name)
    os.ftruncate(fd, native.shm_bytes(ranks))
    return fd


def open_segment(fd: int, ranks: int) -> Any:
    """This process's mapping of the segment that `create_segment(ranks)` made; closes `fd`."""
    assert native is not None
    try:
        return native.ShmSegment(fd, ranks)
    finally:
        os.close(fd)


class SharedMemoryCollectives(Collectives):
    """One group of ranks over a shared segment.

    Every rank copies its part into memory that all can read, raises a flag, waits for the others'
    flags and adds all parts in rank order. Small messages take a few microseconds.

    Args:
        tp: this rank and the group's size.
        segment: from `open_segment`.
        timeout_s: seconds after which a missing peer is an error.
        own_cores: every rank runs on cores that no other rank uses: spin longer before sleeping.
        members: the segment's ranks that form the group, in order; all by default.
        area: the segment's area for this group; no two groups with a common rank may share one.

    Raises:
        RankFailure: from any verb (and here), if a peer dies or does not come within `timeout_s`.
    """

    def __init__(
        self,
        tp: TensorParallel,
        segment: Any,
        timeout_s: float,
        own_cores: bool,
        members: Sequence[int] | None = None,
        area: int = 0,
    ) -> None:
        assert native is not None
        self.tp = tp
        self.path = "shared memory"
        self._segment, self._timeout_s, self._own_cores = segment, timeout_s, own_cores
        self.one_shot_bytes = ONE_SHOT_BYTES if tp.size > 2 else ALWAYS_ONE_SHOT
        self._area, self._areas_used = area, 1
        self._subgroups: list[Collectives] = []
        members = list(range(tp.size)) if members is None else list(members)
        spins, yields = OWN_CORES if own_cores else SHARED_CORES
        try:
            self._open_group: Any = native.ShmGroup(
                segment, area, members, tp.rank, spins, yields, timeout_s
            )
        except RuntimeError as error:
            raise self._failure("set-up", error) from error

    def all_reduce(self, x: Tensor) -> Tensor:
        sum_type = SUM_TYPES.get(x.dtype)
        if sum_type is None:
            flat = x.reshape(1, -1)
            parts = self.all_gather(flat, [flat.shape[1]] * self.tp.size)
            return sum_in_rank_order(parts.view(self.tp.size, *x.shape))
        x = x.contiguous()
        group = self._group
        try:
            group.all_reduce(x.data_ptr(), x.numel(), sum_type, self.one_shot_bytes)
        except RuntimeError as error:
            raise self._failure("all_reduce", error) from error
        return x

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        assert len(sizes) == self.tp.size, f"{len(sizes)} sizes for {self.tp.size} ranks"
        assert x.shape[-1] == sizes[self.tp.rank], f"gives {x.shape[-1]}, announced {sizes}"
        x = x.contiguous()
        leading = x.shape[:-1]
        out = x.new_empty(*leading, sum(sizes))
        row_bytes = [size * x.element_size() for size in sizes]
        group = self._group
        try:
            group.all_gather(x.data_ptr(), out.data_ptr(), math.prod(leading), row_bytes)
        except RuntimeError as error:
            raise self._failure("all_gather", error) from error
        return out

    def all_to_all(self, x: Tensor) -> Tensor:
        assert x.shape[0] == self.tp.size, f"{x.shape[0]} rows for {self.tp.size} ranks"
        x = x.contiguous()
        out = torch.empty_like(x)
        group = self._group
        try:
            group.all_to_all(x.data_ptr(), out.data_ptr(), x.nbytes // self.tp.size)
        except RuntimeError as error:
            raise self._failure("all_to_all", error) from error
        return out

    def start_all_reduce(self, x: Tensor) -> Pending:
        x = x.contiguous()
        if x.dtype not in SUM_TYPES or x.nbytes > self.one_shot_bytes or not self._can_post(x):
            return Pending(lambda: self.all_reduce(x))
        slot, sum_type = self._posted("all_reduce", x), SUM_TYPES[x.dtype]

        def finish() -> Tensor:
            try:
                self._group.collect_sum(slot, x.data_ptr(), x.numel(), sum_type)
            except RuntimeError as error:
                raise self._failure("all_reduce", error) from error
            return x

        return Pending(finish)

    def start_all_gather(self, x: Tensor, sizes: Sequence[int]) -> Pending:
        x = x.contiguous()
        one_row = x.shape[-1] == x.numel()
        if not one_row or len(set(sizes)) > 1 or not self._can_post(x):
            return Pending(lambda: self.all_gather(x, sizes))
        slot = self._posted("all_gather", x)
        return self._collected("all_gather", slot, x.new_empty(*x.shape[:-1], sum(sizes)), 0)

    def start_all_to_all(self, x: Tensor) -> Pending:
        assert x.shape[0] == self.tp.size, f"{x.shape[0]} rows for {self.tp.size} ranks"
        x = x.contiguous()
        if not self._can_post(x):
            return Pending(lambda: self.all_to_all(x))
        slot = self._posted("all_to_all", x)
        offset = self.tp.rank * x.nbytes // self.tp.size
        return self._collected("all_to_all", slot, torch.empty_like(x), offset)

    def _can_post(self, x: Tensor) -> bool:
        """Whether `x` fits into a slot and one is free; else it is moved when it is waited for."""
        return 0 < x.nbytes <= native.SHM_SLOT_BYTES and bool(self._group.can_post)

    def _posted(self, verb: str, x: Tensor) -> int:
        """The slot in which the others can read `x` from now on."""
        try:
            return int(self._group.post(x.data_ptr(), x.nbytes))
        except RuntimeError as error:
            raise self._failure(verb, error) from error

    def _collected(self, verb: str, slot: int, out: Tensor, offset: int) -> Pending:
        """`out`, filled with every rank's bytes from `offset` on of what it posted."""

        def finish() -> Tensor:
            try:
                self._group.collect(slot, out.data_ptr(), offset, out.nbytes // self.tp.size)
            except RuntimeError as error:
                raise self._failure(verb, error) from error
            return out

        return Pending(finish)

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        assert 0 <= root < self.tp.size
        x = x.contiguous()
        group = self._group
        try:
            group.broadcast(x.data_ptr(), x.numel() * x.element_size(), root)
        except RuntimeError as error:
            raise self._failure("broadcast", error) from error
        return x

    def barrier(self) -> None:
        group = self._group
        try:
            group.barrier()
        except RuntimeError as error:
            raise self._failure("barrier", error) from error

    def bare_exchanges(self, calls: int, gap_ns: float) -> list[float]:
        """Nanoseconds of `calls` exchanges of flags that only spin, `gap_ns` apart: the floor."""
        times: list[float] = self._group.bare_exchanges(calls, gap_ns)
        return times

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Collectives:
        assert sorted(rank for ranks in partition for rank in ranks) == list(range(self.tp.size))
        assert self._area == 0, "a subgroup cannot be divided again"
        area, self._areas_used = self._areas_used, self._areas_used + 1
        ranks = next(list(ranks) for ranks in partition if self.tp.rank in ranks)
        if len(ranks) == 1:
            return SingleRank()
        tp = TensorParallel(ranks.index(self.tp.rank), len(ranks))
        group = SharedMemoryCollectives(
            tp, self._segment, self._timeout_s, self._own_cores, ranks, area
        )
        self._subgroups.append(group)
        return group

    def close(self) -> None:
        for group in self._subgroups:
            group.close()
        self._open_group = self._segment = None

    @property
    def _group(self) -> Any:
        if self._open_group is None:
            raise RuntimeError("the collectives are closed")
        return self._open_group

    def _failure(self, verb: str, error: RuntimeError) -> RankFailure:
        return RankFailure(
            f"rank {self.tp.rank} of {self.tp.size}: {verb} over {self.path} failed, {error} "
            f"(timeout {self._timeout_s:g} s)"
        )
