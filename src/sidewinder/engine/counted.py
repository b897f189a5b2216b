"""Collectives that count their calls, so that a report states what a step really did."""

from collections.abc import Sequence

from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.collectives.wrapper import Wrapper


class CallCounter:
    """How many collectives this rank has joined in groups of two ranks or more."""

    def __init__(self) -> None:
        self.calls = 0


class CountedCollectives(Wrapper):
    """`inner` with every call counted; subgroups share the counter.

    Args:
        inner: does the work.
        counter: is advanced.
    """

    def __init__(self, inner: Collectives, counter: CallCounter) -> None:
        super().__init__(inner)
        self._counter = counter

    def all_reduce(self, x: Tensor) -> Tensor:
        self._count()
        return self._inner.all_reduce(x)

    def all_reduce_delta(self, x: Tensor, site: str, n_decodes: int) -> Tensor:
        self._count()
        return self._inner.all_reduce_delta(x, site, n_decodes)

    def start_all_reduce(self, x: Tensor) -> Pending:
        self._count()
        return self._inner.start_all_reduce(x)

    def start_all_reduce_delta(self, x: Tensor, site: str, n_decodes: int) -> Pending:
        self._count()
        return self._inner.start_all_reduce_delta(x, site, n_decodes)

    def start_all_gather(self, x: Tensor, sizes: Sequence[int]) -> Pending:
        self._count()
        return self._inner.start_all_gather(x, sizes)

    def start_all_to_all(self, x: Tensor) -> Pending:
        self._count()
        return self._inner.start_all_to_all(x)

    def is_exact(self, site: str) -> bool:
        return self._inner.is_exact(site)

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        self._count()
        return self._inner.all_gather(x, sizes)

    def all_to_all(self, x: Tensor) -> Tensor:
        self._count()
        return self._inner.all_to_all(x)

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        self._count()
        return self._inner.broadcast(x, root)

    def barrier(self) -> None:
        self._count()
        self._inner.barrier()

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Collectives:
        return CountedCollectives(self._inner.subgroup(partition), self._counter)

    def _count(self) -> None:
        if self.tp.size > 1:
            self._counter.calls += 1
