"""Collectives over memory that every rank's device can read: small messages without NCCL.

A rank writes its message into its own buffer, all meet, and each reads what it needs from the
others' buffers. Nothing waits on the host, so all of it can be recorded in a CUDA graph. Messages
that do not fit, and everything that is not in a model's step, go to the transport underneath.

`Peers` hides the device: `symmetric_cuda` has the real one, the tests use threads.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending, SingleRank
from sidewinder.collectives.direct import DirectSums
from sidewinder.collectives.peers import Peers
from sidewinder.collectives.rank_order import sum_in_rank_order
from sidewinder.ops.codec.formats import Codec

ONE_SHOT_BYTES = 512 * 1024
"""Larger sums go to NCCL: a rank would read more from its peers than a ring moves."""


class SymmetricCollectives(Collectives):
    """Small messages through `peers`, the others through `inner`.

    Args:
        inner: serves the same ranks.
        peers: their buffers.
        largest_sum: bytes up to which sums are read from the peers; all that fit, where `inner`
            waits on the host.
    """

    def __init__(self, inner: Collectives, peers: Peers, largest_sum: int = ONE_SHOT_BYTES) -> None:
        self.tp = inner.tp
        self.path = f"symmetric memory, {inner.path}"
        self.capturable = True
        self.overlaps = True
        self._inner, self._peers = inner, peers
        self._direct = DirectSums(inner.tp, peers) if peers.direct_bytes else None
        self.has_choice = inner.capturable
        self.device = peers.buffers[inner.tp.rank].device
        self._largest_sum = min(largest_sum, peers.n_bytes) if inner.capturable else peers.n_bytes
        self._subgroups: list[Collectives] = []

    @property
    def one_shot_bytes(self) -> int:
        """Bytes up to which sums are read from the peers; `has_choice` says whether it matters."""
        return self._largest_sum

    @one_shot_bytes.setter
    def one_shot_bytes(self, n_bytes: int) -> None:
        self._largest_sum = min(n_bytes, self._peers.n_bytes)

    def all_reduce(self, x: Tensor) -> Tensor:
        if not self._sums(x):
            return self._inner.all_reduce(x)
        self._peers.catch_up()
        return self._sum(x)

    def start_all_reduce(self, x: Tensor) -> Pending:
        if not self._sums(x):
            return self._inner.start_all_reduce(x)
        return self._peers.beside(lambda: self._sum(x))

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        if not self._gathers(x, sizes):
            return self._inner.all_gather(x, sizes)
        self._peers.catch_up()
        return self._gather(x, sizes)

    def start_all_gather(self, x: Tensor, sizes: Sequence[int]) -> Pending:
        if not self._gathers(x, sizes):
            return self._inner.start_all_gather(x, sizes)
        return self._peers.beside(lambda: self._gather(x, sizes))

    def all_to_all(self, x: Tensor) -> Tensor:
        if not 0 < x.nbytes <= self._peers.n_bytes:
            return self._inner.all_to_all(x)
        self._peers.catch_up()
        return self._exchange(x)

    def start_all_to_all(self, x: Tensor) -> Pending:
        if not 0 < x.nbytes <= self._peers.n_bytes:
            return self._inner.start_all_to_all(x)
        return self._peers.beside(lambda: self._exchange(x))

    def start_quantised(self, x: Tensor, codec: Codec) -> Pending | None:
        return None if self._direct is None else self._direct.start(x, codec)

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        return self._inner.broadcast(x, root)

    def barrier(self) -> None:
        self._inner.barrier()

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Collectives:
        ranks = next(list(ranks) for ranks in partition if self.tp.rank in ranks)
        inner = self._inner.subgroup(partition)
        if len(ranks) == 1:
            return SingleRank()
        peers = self._peers.subgroup(ranks, inner.tp, inner)
        group = SymmetricCollectives(inner, peers, self._largest_sum)
        self._subgroups.append(group)
        return group

    def close(self) -> None:
        for group in self._subgroups:
            group.close()
        self._peers.close()
        self._inner.close()

    def _sums(self, x: Tensor) -> bool:
        return 0 < x.nbytes <= self._largest_sum

    def _gathers(self, x: Tensor, sizes: Sequence[int]) -> bool:
        """The same on every rank, whatever its own share of `sizes`."""
        largest = prod(x.shape[:-1]) * max(sizes) * x.element_size()
        return 0 < largest <= self._peers.n_bytes

    def _sum(self, x: Tensor) -> Tensor:
        self._write(x)
        total = self._peers.fused_sum(x.numel(), x.dtype)
        if total is None:
            self._peers.meet()
            parts = [each[: x.nbytes].view(x.dtype) for each in self._peers.buffers]
            total = sum_in_rank_order(torch.stack(parts))
            self._peers.meet()
        return total.view(x.shape)

    def _gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        assert x.shape[-1] == sizes[self.tp.rank], f"gives {x.shape[-1]}, announced {sizes}"
        self._write(x)
        self._peers.meet()
        leading = x.shape[:-1]
        row_bytes = prod(leading) * x.element_size()
        parts = [
            buffer[: size * row_bytes].view(x.dtype).view(*leading, size)
            for buffer, size in zip(self._peers.buffers, sizes, strict=True)
        ]
        joined = torch.cat(parts, dim=-1)
        self._peers.meet()
        return joined

    def _exchange(self, x: Tensor) -> Tensor:
        assert x.shape[0] == self.tp.size, f"{x.shape[0]} rows for {self.tp.size} ranks"
        self._write(x)
        self._peers.meet()
        row = x.nbytes // self.tp.size
        mine = slice(self.tp.rank * row, (self.tp.rank + 1) * row)
        rows = torch.stack([buffer[mine] for buffer in self._peers.buffers])
        self._peers.meet()
        return rows.view(x.dtype).view(x.shape)

    def _write(self, x: Tensor) -> None:
        own = self._peers.buffers[self.tp.rank]
        own[: x.nbytes].view(x.dtype).view(x.shape).copy_(x)
