"""Sockets from every rank to every other, found through a store that all ranks share."""

import secrets
import socket
import time
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import Any

from sidewinder.collectives.distributed import c10d
from sidewinder.collectives.tcp import Links
from sidewinder.parallel.door import MOST_GUESTS, RANK_BYTES, Door
from sidewinder.parallel.errors import RankFailure
from sidewinder.parallel.group import TensorParallel

TOKEN_BYTES = 32


def connect_mesh(
    tp: TensorParallel, store: Any, host: str, timeout_s: float
) -> list[socket.socket | None]:
    """A connected socket to every other rank, in rank order; None for this one.

    Each rank listens on `host` while the group forms, and nowhere else. Whoever connects must
    repeat a random token that only the store tells.

    Args:
        tp: this rank and the group's size.
        store: a torch store of this group's own.
        host: the address of this machine that the other ranks can reach.
        timeout_s: seconds after which a missing rank is an error.

    Raises:
        RankFailure: if a rank does not come in time, or the address cannot be used.
    """
    deadline = time.monotonic() + timeout_s
    peers: list[socket.socket | None] = [None] * tp.size
    with ExitStack() as on_failure:
        try:
            with _listen(host, tp.size + MOST_GUESTS) as listener:
                token = secrets.token_bytes(TOKEN_BYTES)
                port = listener.getsockname()[1]
                store.set(f"mesh/{tp.rank}", f"{host} {port} {token.hex()}")
                for rank in range(tp.rank):
                    peers[rank] = on_failure.enter_context(_connect(tp, rank, store, deadline))
                with closing(Door(listener, token)) as door:
                    while None in peers[tp.rank + 1 :]:
                        rank, peer = door.next_peer(deadline)
                        if not tp.rank < rank < tp.size or peers[rank] is not None:
                            peer.close()
                            continue
                        peers[rank] = on_failure.enter_context(peer)
        except (OSError, RuntimeError) as error:
            raise RankFailure(
                f"rank {tp.rank} of {tp.size} could not connect to all others over TCP from {host} "
                f"within {timeout_s:g} s ({error})"
            ) from error
        on_failure.pop_all()
    return peers


def open_links(
    tp: TensorParallel, store: Any, host: str, timeout_s: float, own_cores: bool = False
) -> Links:
    """Two connections to every other rank: one for messages that must not wait for long ones.

    Args:
        tp, store, host, timeout_s: as of `connect_mesh`.
        own_cores: every rank runs on cores that no other rank uses.

    Raises:
        RankFailure: as of `connect_mesh`.
    """
    first, second = (
        connect_mesh(tp, c10d.PrefixStore(name, store), host, timeout_s)
        for name in ("main", "bulk")
    )
    return Links(tp, first, timeout_s, own_cores, bulk=second)


def address_towards(host: str, port: int) -> str:
    """The address of this machine that packets to `host` leave from; nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def _listen(host: str, backlog: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.bind(address)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def _connect(tp: TensorParallel, rank: int, store: Any, deadline: float) -> socket.socket:
    key = f"mesh/{rank}"
    store.wait([key], timedelta(seconds=max(0.001, deadline - time.monotonic())))
    host, port, token = store.get(key).decode().split()
    left = max(0.001, deadline - time.monotonic())
    peer = socket.create_connection((host, int(port)), timeout=left)
    try:
        peer.sendall(bytes.fromhex(token) + tp.rank.to_bytes(RANK_BYTES, "big"))
    except OSError:
        peer.close()
        raise
    peer.settimeout(None)
    return peer
