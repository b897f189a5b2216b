"""Ranks that are not there: to record what one of them launches, on tensors without memory."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.collectives.symmetric import SymmetricCollectives
from sidewinder.collectives.symmetric_cuda import BUFFER_BYTES, DIRECT_BYTES
from sidewinder.parallel.group import TensorParallel


class AbsentRanks(Collectives):
    """A group whose other ranks send nothing: results have their shapes, and no values.

    Args:
        tp: the rank that is there.
    """

    def __init__(self, tp: TensorParallel) -> None:
        self.tp = tp
        self.path = "nobody"
        self.capturable = self.overlaps = True

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        return x.new_empty(*x.shape[:-1], sum(sizes))

    def all_to_all(self, x: Tensor) -> Tensor:
        return torch.empty_like(x)

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        assert root < self.tp.size
        return x

    def barrier(self) -> None:
        return None

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Collectives:
        ranks = next(list(ranks) for ranks in partition if self.tp.rank in ranks)
        return AbsentRanks(TensorParallel(ranks.index(self.tp.rank), len(ranks)))

    def close(self) -> None:
        return None


class AbsentPeers:
    """Buffers of absent ranks, as large as those of GPUs; see `Peers`."""

    n_bytes = BUFFER_BYTES

    def __init__(self, size: int, direct_bytes: int = DIRECT_BYTES) -> None:
        self.direct_bytes = direct_bytes
        shape = self.n_bytes + 2 * direct_bytes
        self.buffers: Sequence[Tensor] = [
            torch.empty(shape, dtype=torch.uint8, device="meta") for _ in range(size)
        ]
        self.places = torch.empty(size, dtype=torch.int64, device="meta")

    def meet(self) -> None:
        return None

    def fused_sum(self, n: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(n, dtype=dtype, device="meta")

    def beside(self, run: Callable[[], Tensor]) -> Pending:
        return Pending.done(run())

    def catch_up(self) -> None:
        return None

    def subgroup(
        self, ranks: Sequence[int], tp: TensorParallel, inner: Collectives
    ) -> "AbsentPeers":
        assert len(ranks) == tp.size == inner.tp.size
        return AbsentPeers(tp.size, direct_bytes=0)

    def close(self) -> None:
        return None


def absent_gpus(tp: TensorParallel) -> Collectives:
    """GPUs of one machine that can map each other's memory."""
    return SymmetricCollectives(AbsentRanks(tp), AbsentPeers(tp.size))
