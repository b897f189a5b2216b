"""Tensors of a device over a transport for CPU tensors: ranks that share one card.

NCCL refuses two ranks on one device. Every message is copied to the host and back, so this is for
tests, not for speed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives, SingleRank


class StagedCollectives(Collectives):
    """`inner`, for tensors of any device.

    Args:
        inner: of the same ranks, for CPU tensors.
    """

    def __init__(self, inner: Collectives) -> None:
        self.tp = inner.tp
        self.path = f"{inner.path} by way of the host"
        self._inner = inner

    @property
    def backend(self) -> Any:
        """`inner`'s process group, where it is one of torch's."""
        return getattr(self._inner, "backend", None)

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._back(self._inner.all_reduce(x.cpu()), x)

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        return self._back(self._inner.all_gather(x.cpu(), sizes), x)

    def all_to_all(self, x: Tensor) -> Tensor:
        return self._back(self._inner.all_to_all(x.cpu()), x)

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        return self._back(self._inner.broadcast(x.cpu(), root), x)

    def barrier(self) -> None:
        self._inner.barrier()

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Collectives:
        group = self._inner.subgroup(partition)
        return group if isinstance(group, SingleRank) else StagedCollectives(group)

    def close(self) -> None:
        self._inner.close()

    def _back(self, result: Tensor, x: Tensor) -> Tensor:
        if x.device == torch.device("cpu"):
            return result
        return result.to(x.device)
