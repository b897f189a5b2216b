"""Collectives around others: what passes most verbs on, and changes some."""

from collections.abc import Sequence

from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending


class Wrapper(Collectives):
    """`inner`, with every verb passed on but the sums of deltas, which subclasses define.

    Args:
        inner: moves the bytes; closed together with this.
    """

    def __init__(self, inner: Collectives) -> None:
        self.tp = inner.tp
        self.path = inner.path
        self.capturable = inner.capturable
        self.overlaps = inner.overlaps
        self._inner = inner

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._inner.all_reduce(x)

    def start_all_reduce(self, x: Tensor) -> Pending:
        return self._inner.start_all_reduce(x)

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        return self._inner.all_gather(x, sizes)

    def start_all_gather(self, x: Tensor, sizes: Sequence[int]) -> Pending:
        return self._inner.start_all_gather(x, sizes)

    def all_to_all(self, x: Tensor) -> Tensor:
        return self._inner.all_to_all(x)

    def start_all_to_all(self, x: Tensor) -> Pending:
        return self._inner.start_all_to_all(x)

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        return self._inner.broadcast(x, root)

    def barrier(self) -> None:
        self._inner.barrier()

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Collectives:
        return self._inner.subgroup(partition)

    @property
    def waited_s(self) -> float:
        return self._inner.waited_s

    def close(self) -> None:
        self._inner.close()
