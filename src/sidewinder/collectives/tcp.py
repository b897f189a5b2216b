"""Collectives between hosts over TCP sockets (native code, `csrc/tcp_group.h`)."""

import socket
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending, SingleRank
from sidewinder.collectives.rank_order import sum_in_rank_order
from sidewinder.collectives.shared_memory import SUM_TYPES, native
from sidewinder.parallel.errors import RankFailure
from sidewinder.parallel.group import TensorParallel

ONE_SHOT_BYTES = 64 * 1024
"""Among three or more ranks: up to this size every rank gets all parts and sums them; above, each
sums one stripe. Between two ranks both ways move the same bytes, and this one takes a step more."""

PIECE_BYTES = 512 * 1024
"""A longer sum travels in pieces, so that one is added while the next is on its way."""

SPIN_US = 20
"""How long a rank that has a core of its own looks for bytes before it sleeps."""


class Links:
    """Connections to all other ranks of the world, and the exchanges on them.

    Args:
        tp: this rank and the number of all ranks.
        sockets: connected to every other rank, in rank order, None for this one (`connect_mesh`);
            they belong to the links.
        bulk: more such sockets, for long messages that others may overtake; None if all messages
            go in one order.
        timeout_s: seconds without a byte after which a peer counts as missing.
        own_cores: every rank runs on cores that no other rank uses.
    """

    def __init__(
        self,
        tp: TensorParallel,
        sockets: Sequence[socket.socket | None],
        timeout_s: float,
        own_cores: bool = False,
        bulk: Sequence[socket.socket | None] | None = None,
    ) -> None:
        assert native is not None, "TCP collectives need the native module"
        self.tp = tp
        self.timeout_s = timeout_s
        fds = [-1 if peer is None else peer.detach() for peer in sockets]
        self.group: Any = native.TcpGroup(fds, tp.rank, timeout_s, SPIN_US if own_cores else 0)
        self.bulk = self if bulk is None else Links(tp, bulk, timeout_s)
        self._held: dict[int, object] = {}
        self.waited_s = 0.0

    def post(self, members: Sequence[int], out: Sequence[Tensor], into: Sequence[Tensor]) -> int:
        """Begin to send `out[i]` to rank `members[i]` and to receive `into[i]` from it; a ticket.

        What is this rank's own stays where it is. Tensors are contiguous.
        """
        ticket = int(self.group.post(*self._places(members, out), *self._places(members, into)))
        self._held[ticket] = out, into  # The memory must outlive the exchange.
        return ticket

    def wait(self, ticket: int) -> None:
        """Return when the exchange is complete."""
        started = time.perf_counter()
        self.group.wait(ticket)
        self.waited_s += time.perf_counter() - started
        del self._held[ticket]

    def close(self) -> None:
        """End all connections; calling twice is fine."""
        if self.bulk is not self:
            self.bulk.close()
        self.group.close()
        self._held.clear()

    def _places(
        self, members: Sequence[int], tensors: Sequence[Tensor]
    ) -> tuple[list[int], list[int]]:
        """Addresses and bytes by rank of the world."""
        addresses, sizes = [0] * self.tp.size, [0] * self.tp.size
        for rank, tensor in zip(members, tensors, strict=True):
            if rank != self.tp.rank:
                addresses[rank], sizes[rank] = tensor.data_ptr(), tensor.nbytes
        return addresses, sizes


class TcpCollectives(Collectives):
    """One group of ranks over TCP.

    Both directions of all connections are used at once. What was started moves on while this rank
    computes: the kernel's buffers hold it, and a thread of the links that mostly sleeps.

    Args:
        tp: this rank and the group's size.
        links: connections of the world that the group is a part of; closed with the world's group.
        members: the world's ranks that form the group, in order; all by default.

    Raises:
        RankFailure: from any verb, if a peer dies or sends no byte for the links' timeout.
    """

    overlaps = True

    def __init__(
        self, tp: TensorParallel, links: Links, members: Sequence[int] | None = None
    ) -> None:
        self.tp = tp
        self.path = "tcp"
        self.one_shot_bytes = ONE_SHOT_BYTES
        self._links = links
        self._owns_links = members is None
        self._members = list(range(tp.size)) if members is None else list(members)

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank has given to its sockets so far."""
        return sum(int(links.group.bytes_sent) for links in self._lanes)

    @property
    def waited_s(self) -> float:
        return sum(links.waited_s for links in self._lanes)

    def bulk(self) -> "TcpCollectives":
        if self._links.bulk is self._links:
            return self
        group = TcpCollectives(self.tp, self._links.bulk, self._members)
        group.one_shot_bytes = self.one_shot_bytes
        return group

    def all_reduce(self, x: Tensor) -> Tensor:
        return self.start_all_reduce(x).wait()

    def start_all_reduce_delta(self, x: Tensor, site: str, n_decodes: int) -> Pending:  # noqa: ARG002
        return self.bulk().start_all_reduce(x)

    def start_all_reduce(self, x: Tensor) -> Pending:
        if x.dtype not in SUM_TYPES:
            parts = self.start_all_gather(x.reshape(1, -1), [x.numel()] * self.tp.size)
            shape = (self.tp.size, *x.shape)
            return parts.then(lambda all_parts: sum_in_rank_order(all_parts.view(shape)))
        x = x.contiguous()
        if self.tp.size == 2 or x.nbytes <= self.one_shot_bytes:
            return self._start_one_shot(x)
        return self._start_two_shot(x)

    def _start_one_shot(self, x: Tensor) -> Pending:
        flat = x.view(-1)
        parts = [flat if rank == self.tp.rank else torch.empty_like(flat) for rank in self._ranks]
        step = PIECE_BYTES // x.element_size()
        pieces = [slice(start, start + step) for start in range(0, flat.numel(), step)]
        tickets = [
            self._post([flat[piece]] * self.tp.size, [part[piece] for part in parts])
            for piece in pieces
        ]

        def finish() -> Tensor:
            for ticket, piece in zip(tickets, pieces, strict=True):
                self._wait("all_reduce", ticket)
                _sum_into(flat[piece], [part[piece] for part in parts])
            return x

        return Pending(finish)

    def _start_two_shot(self, x: Tensor) -> Pending:
        flat = x.view(-1)
        step = -(-flat.numel() // self.tp.size)
        stripes = [flat[rank * step : (rank + 1) * step] for rank in self._ranks]
        mine = stripes[self.tp.rank]
        parts = [mine if rank == self.tp.rank else torch.empty_like(mine) for rank in self._ranks]
        ticket = self._post(stripes, parts)

        def exchange_sums() -> Pending:
            self._wait("all_reduce", ticket)
            _sum_into(mine, parts)
            sums = self._post([mine] * self.tp.size, stripes)

            def finish() -> Tensor:
                self._wait("all_reduce", sums)
                return x

            return Pending(finish)

        return Pending.in_two(exchange_sums)

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        return self.start_all_gather(x, sizes).wait()

    def start_all_gather(self, x: Tensor, sizes: Sequence[int]) -> Pending:
        assert len(sizes) == self.tp.size, f"{len(sizes)} sizes for {self.tp.size} ranks"
        assert x.shape[-1] == sizes[self.tp.rank], f"gives {x.shape[-1]}, announced {sizes}"
        x = x.contiguous()
        leading = x.shape[:-1]
        if leading.numel() == 1:
            # Parts lie end to end in the result.
            joined = x.new_empty(*leading, sum(sizes))
            parts = list(torch.split(joined.view(-1), list(sizes)))
            parts[self.tp.rank].copy_(x.view(-1))
        else:
            parts = [x.new_empty(*leading, size) for size in sizes]
            parts[self.tp.rank] = x
        ticket = self._post([x] * self.tp.size, parts)

        def finish() -> Tensor:
            self._wait("all_gather", ticket)
            return joined if leading.numel() == 1 else torch.cat(parts, dim=-1)

        return Pending(finish)

    def all_to_all(self, x: Tensor) -> Tensor:
        return self.start_all_to_all(x).wait()

    def start_all_to_all(self, x: Tensor) -> Pending:
        assert x.shape[0] == self.tp.size, f"{x.shape[0]} rows for {self.tp.size} ranks"
        x = x.contiguous()
        rows = torch.empty_like(x)
        rows[self.tp.rank] = x[self.tp.rank]
        ticket = self._post(x.unbind(0), rows.unbind(0))

        def finish() -> Tensor:
            self._wait("all_to_all", ticket)
            return rows

        return Pending(finish)

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        assert 0 <= root < self.tp.size
        x = x.contiguous()
        nothing = x.new_empty(0)
        is_root = root == self.tp.rank
        out = [x if is_root else nothing] * self.tp.size
        into = [x if rank == root and not is_root else nothing for rank in self._ranks]
        self._wait("broadcast", self._post(out, into))
        return x

    def barrier(self) -> None:
        self.all_gather(torch.zeros(1, dtype=torch.uint8), [1] * self.tp.size)

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Collectives:
        assert sorted(rank for ranks in partition for rank in ranks) == list(self._ranks)
        ranks = next(list(ranks) for ranks in partition if self.tp.rank in ranks)
        if len(ranks) == 1:
            return SingleRank()
        # The same connections: whoever shares one makes the same calls in the same order.
        tp = TensorParallel(ranks.index(self.tp.rank), len(ranks))
        return TcpCollectives(tp, self._links, [self._members[rank] for rank in ranks])

    def close(self) -> None:
        if self._owns_links:
            self._links.close()

    @property
    def _lanes(self) -> set[Links]:
        return {self._links, self._links.bulk}

    @property
    def _ranks(self) -> range:
        return range(self.tp.size)

    def _post(self, out: Sequence[Tensor], into: Sequence[Tensor]) -> int:
        try:
            return self._links.post(self._members, out, into)
        except RuntimeError as error:
            raise self._failure("exchange", error) from error

    def _wait(self, verb: str, ticket: int) -> None:
        try:
            self._links.wait(ticket)
        except RuntimeError as error:
            raise self._failure(verb, error) from error

    def _failure(self, verb: str, error: RuntimeError) -> RankFailure:
        return RankFailure(
            f"rank {self.tp.rank} of {self.tp.size}: {verb} over {self.path} failed, {error} "
            f"(timeout {self._links.timeout_s:g} s)"
        )


def _sum_into(out: Tensor, parts: Sequence[Tensor]) -> None:
    """The sum of `parts` in rank order; `out` may be one of them."""
    addresses = [part.data_ptr() for part in parts]
    native.rank_sum(addresses, out.data_ptr(), out.numel(), SUM_TYPES[out.dtype])
