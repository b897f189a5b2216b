"""Collectives over torch's process groups: gloo for CPU tensors, NCCL for CUDA tensors.

The groups are explicit objects: torch's global default group is neither needed nor touched.
"""

import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending, SingleRank
from sidewinder.collectives.rank_order import sum_in_rank_order
from sidewinder.parallel.errors import RankFailure
from sidewinder.parallel.group import TensorParallel

c10d: Any = torch.distributed
"""Its process groups and stores carry no types."""

ONE_SHOT_BYTES = 64 * 1024
"""Below this size every rank gathers all parts and sums them; above, each sums one stripe."""


class TorchCollectives(Collectives):
    """One group of ranks over torch.distributed.

    Args:
        tp: this rank and the group's size.
        store: a torch store that all ranks of the group share.
        device: "cpu" (gloo) or a CUDA device (NCCL).
        timeout_s: seconds after which a missing peer is an error.
        host: the address of this machine on which gloo listens, and through which it talks.
        name: prefix of this group's keys in the store; equal on all ranks, unique per group.

    Raises:
        RankFailure: from any verb (and here), if a peer does not take part within `timeout_s`.
    """

    def __init__(
        self,
        tp: TensorParallel,
        store: Any,
        device: torch.device,
        timeout_s: float,
        host: str = "127.0.0.1",
        name: str = "sidewinder",
    ) -> None:
        self.tp = tp
        self.path = "nccl" if device.type == "cuda" else "gloo"
        self.capturable = self.overlaps = self.path == "nccl"
        self._device, self._timeout_s, self._host = device, timeout_s, host
        self._store, self._name = store, name
        self._subgroups: list[Collectives] = []
        self._partitions = 0
        make_group = _nccl_group if self.path == "nccl" else _gloo_group
        prefixed = c10d.PrefixStore(name, store)
        groups = [
            self._checked("set-up", lambda: make_group(tp, prefixed, device, timeout_s, host))
        ]
        # Groups that outlive the interpreter abort it: the finalizer also runs at exit.
        self._finalizer = weakref.finalize(self, _shut_down, groups)
        self._groups = groups

    def all_reduce(self, x: Tensor) -> Tensor:
        if self.path == "nccl":
            x = x.contiguous()
            self._wait("all_reduce", lambda: self._group.allreduce([x]))
            return x
        flat = x.contiguous().reshape(-1)
        if flat.numel() * flat.element_size() <= ONE_SHOT_BYTES:
            return sum_in_rank_order(self._gather_equal(flat)).reshape(x.shape)
        return self._two_shot(flat).reshape(x.shape)

    def _two_shot(self, flat: Tensor) -> Tensor:
        stripe = -(-flat.numel() // self.tp.size)
        padded = flat.new_zeros(self.tp.size, stripe)
        padded.view(-1)[: flat.numel()] = flat
        mine = self._exchange("all_reduce", padded)
        return self._gather_equal(sum_in_rank_order(mine)).view(-1)[: flat.numel()]

    def _exchange(self, verb: str, rows: Tensor) -> Tensor:
        """Every rank's contiguous row for this one, `[ranks, n]`."""
        mine = torch.empty_like(rows)
        self._wait(verb, lambda: self._group.alltoall_base(_bytes(mine), _bytes(rows), [], []))
        return mine

    def _gather_equal(self, part: Tensor) -> Tensor:
        """Every rank's contiguous `part` (equal shapes), stacked: `[ranks, *part.shape]`."""
        parts = part.new_empty(self.tp.size, *part.shape)
        if part.numel():
            self._wait(
                "all_gather",
                lambda: self._group._allgather_base(_bytes(parts), _bytes(part)),
            )
        return parts

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        assert len(sizes) == self.tp.size, f"{len(sizes)} sizes for {self.tp.size} ranks"
        assert x.shape[-1] == sizes[self.tp.rank], f"gives {x.shape[-1]}, announced {sizes}"
        padded = x.new_empty(*x.shape[:-1], max(sizes))
        padded[..., : x.shape[-1]] = x
        parts = self._gather_equal(padded)
        return torch.cat([part[..., :size] for part, size in zip(parts, sizes, strict=True)], -1)

    def all_to_all(self, x: Tensor) -> Tensor:
        assert x.shape[0] == self.tp.size, f"{x.shape[0]} rows for {self.tp.size} ranks"
        return self._exchange("all_to_all", x.contiguous()) if x.numel() else x

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        x = x.contiguous()
        options = c10d.BroadcastOptions()
        options.rootRank = root
        if x.numel():
            self._wait("broadcast", lambda: self._group.broadcast([_bytes(x)], options))
        return x

    def barrier(self) -> None:
        options = c10d.BarrierOptions()
        if self.path == "nccl":
            options.device_ids = [self._device.index]  # It would guess one by the rank.
        self._wait("barrier", lambda: self._group.barrier(options))

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Collectives:
        assert sorted(rank for ranks in partition for rank in ranks) == list(range(self.tp.size))
        self._partitions += 1
        index = next(i for i, ranks in enumerate(partition) if self.tp.rank in ranks)
        ranks = list(partition[index])
        if len(ranks) == 1:
            return SingleRank()
        group = TorchCollectives(
            TensorParallel(ranks.index(self.tp.rank), len(ranks)),
            self._store,
            self._device,
            self._timeout_s,
            self._host,
            name=f"{self._name}/{self._partitions}.{index}",
        )
        self._subgroups.append(group)
        return group

    def close(self) -> None:
        for group in self._subgroups:
            group.close()
        self._finalizer()

    @property
    def backend(self) -> Any:
        """The process group of torch underneath."""
        return self._group

    def start_all_reduce(self, x: Tensor) -> Pending:
        if self.path != "nccl":
            return Pending.done(self.all_reduce(x))
        x = x.contiguous()
        return self._started("all_reduce", lambda: self._group.allreduce([x]), lambda: x)

    def start_all_gather(self, x: Tensor, sizes: Sequence[int]) -> Pending:
        if self.path != "nccl" or not x.numel() or len(set(sizes)) > 1:
            return Pending.done(self.all_gather(x, sizes))
        x = x.contiguous()
        parts = x.new_empty(self.tp.size, *x.shape)
        return self._started(
            "all_gather",
            lambda: self._group._allgather_base(_bytes(parts), _bytes(x)),
            lambda: torch.cat(parts.unbind(0), dim=-1),
        )

    def start_all_to_all(self, x: Tensor) -> Pending:
        if self.path != "nccl" or not x.numel():
            return Pending.done(self.all_to_all(x))
        x = x.contiguous()
        mine = torch.empty_like(x)
        return self._started(
            "all_to_all",
            lambda: self._group.alltoall_base(_bytes(mine), _bytes(x), [], []),
            lambda: mine,
        )

    def _started(
        self, verb: str, start: Callable[[], Any], result: Callable[[], Tensor]
    ) -> Pending:
        """On NCCL's own stream, behind what this stream has been given; waiting for it there."""
        work = self._checked(verb, start)

        def finish() -> Tensor:
            self._checked(verb, work.wait)
            return result()

        return Pending(finish)

    @property
    def _group(self) -> Any:
        if not self._groups:
            raise RuntimeError("the collectives are closed")
        return self._groups[0]

    def _wait(self, verb: str, start: Callable[[], Any]) -> None:
        self._checked(verb, lambda: start().wait())

    def _checked(self, verb: str, run: Callable[[], Any]) -> Any:
        """`run()`; torch's errors of transport become one `RankFailure` that says where it was."""
        try:
            return run()
        except (RuntimeError, ValueError) as error:
            raise RankFailure(
                f"rank {self.tp.rank} of {self.tp.size}: {verb} over {self.path} failed, a peer "
                f"died or did not take part within {self._timeout_s:g} s ({error})"
            ) from error


def _bytes(x: Tensor) -> Tensor:
    """`x` as flat bytes: transports move every dtype alike. On CUDA streams order the copies."""
    return x.view(-1).view(torch.uint8)


def _gloo_group(
    tp: TensorParallel, store: Any, _: torch.device, timeout_s: float, host: str
) -> Any:
    options = c10d.ProcessGroupGloo._Options()
    options._timeout = timedelta(seconds=timeout_s)
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=host)]
    return c10d.ProcessGroupGloo(store, tp.rank, tp.size, options)


def _nccl_group(
    tp: TensorParallel, store: Any, device: torch.device, timeout_s: float, _: str
) -> Any:
    torch.cuda.set_device(device)
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=timeout_s)
    return c10d.ProcessGroupNCCL(store, tp.rank, tp.size, options)


def _shut_down(groups: list[Any]) -> None:
    while groups:
        groups.pop().shutdown()
