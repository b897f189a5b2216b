"""This process as one rank of a torchrun job: its place, and the group it forms with the others."""

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from sidewinder.collectives.base import Collectives, SingleRank
from sidewinder.collectives.distributed import TorchCollectives, c10d
from sidewinder.collectives.shared_memory import (
    SEGMENT_NAME,
    SharedMemoryCollectives,
    create_segment,
    native,
    open_segment,
)
from sidewinder.collectives.tcp import TcpCollectives
from sidewinder.parallel.errors import RankFailure
from sidewinder.parallel.gpu_group import gpu_transport, join_gpus
from sidewinder.parallel.group import TensorParallel
from sidewinder.parallel.mesh import address_towards, open_links
from sidewinder.parallel.protocol import Transport
from sidewinder.parallel.same_kernels import check_same_kernels, kernels_here
from sidewinder.parallel.store import exchange, wait_for


@dataclass(frozen=True)
class TorchrunPlace:
    """This process's place in a torchrun job.

    Attributes:
        tp: rank and size of the world.
        local_rank, local_size: the same on this machine.
        master: address and port of the job's rendezvous.
    """

    tp: TensorParallel
    local_rank: int
    local_size: int
    master: tuple[str, int]

    @staticmethod
    def read(environment: Mapping[str, str], tp: int) -> "TorchrunPlace":
        """From torchrun's variables.

        Raises:
            ValueError: if they are absent or malformed, or the world is not of `tp` ranks.
        """
        numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        absent = [name for name in (*numbers, "MASTER_ADDR") if name not in environment]
        if absent:
            raise ValueError(
                f"launch='torchrun' needs torchrun's variables; not set: {', '.join(absent)}; "
                f"start with: torchrun --nproc-per-node {tp} script.py"
            )
        for name in numbers:
            if not environment[name].isdecimal():
                raise ValueError(f"{name}={environment[name]!r} is not a number; torchrun sets it")
        rank, size, local_rank, local_size, port = (int(environment[name]) for name in numbers)
        if size != tp:
            raise ValueError(f"tp={tp}, but torchrun started {size} ranks; make them equal")
        master = environment["MASTER_ADDR"], port
        return TorchrunPlace(TensorParallel(rank, size), local_rank, local_size, master)


def join_torchrun(
    place: TorchrunPlace,
    device: torch.device,
    forced: Transport | None,
    timeout_s: float,
    name: str,
) -> Collectives:
    """This rank's end of the job's group.

    CPU ranks talk over shared memory if all are on one machine, else over TCP; over gloo without
    the native module.

    Args:
        place: this rank.
        device: where it computes.
        forced: of CPU ranks, the transport that the user insists on.
        timeout_s: seconds after which a missing peer is an error.
        name: of the group, equal on all ranks and unique in the job.

    Raises:
        ValueError: if CPU ranks run different levels of kernels.
        RankFailure: if a rank does not come in time.
    """
    if place.tp.size == 1:
        return SingleRank(place.tp)
    try:
        store, _, _ = next(c10d.rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    except RuntimeError as error:
        raise RankFailure(f"rank {place.tp.rank} found no rendezvous ({error})") from error
    one_machine = place.local_size == place.tp.size
    host = "127.0.0.1" if one_machine else address_towards(*place.master)
    if device.type == "cuda":
        transport = gpu_transport(forced, place.local_size, one_machine)
        return join_gpus(place.tp, store, device, transport, timeout_s, name)
    own_store = c10d.PrefixStore(name, store)
    check_same_kernels(place.tp, own_store, kernels_here(), timeout_s)
    if native is None or forced == "gloo":
        return TorchCollectives(place.tp, store, device, timeout_s, host, name)
    group = _join_cpus(place, own_store, host, forced, timeout_s)
    group.barrier()  # The store may end with rank 0's use of it; now nobody needs it any more.
    return group


def _join_cpus(
    place: TorchrunPlace, store: Any, host: str, forced: Transport | None, timeout_s: float
) -> Collectives:
    """Over shared memory where that is possible and wanted, else over TCP."""
    one_machine = place.local_size == place.tp.size
    if one_machine and forced in (None, "shared memory"):
        segment = _shared_segment(place.tp, store, timeout_s)
        if segment is not None:
            # The user's own processes are never pinned, so no core is a rank's own.
            return SharedMemoryCollectives(place.tp, segment, timeout_s, own_cores=False)
    return TcpCollectives(place.tp, open_links(place.tp, store, host, timeout_s))


def _shared_segment(tp: TensorParallel, store: Any, timeout_s: float) -> Any:
    """A segment that all ranks have mapped, or None on all ranks if one of them could not.

    Rank 0 makes it and the others open it through rank 0's process, which the kernel allows to
    processes of the same user. It has no name, and goes with its last user.
    """
    fd = -1
    if tp.rank == 0:
        name = f"{SEGMENT_NAME}-{secrets.token_hex(8)}"
        fd = create_segment(tp.size, name)
        store.set("segment", f"{os.getpid()} {fd} {name}")
    segment = None
    # What the system refuses (containers with process spaces of their own) is the answer "no".
    with suppress(OSError, RuntimeError):
        segment = open_segment(_open_of_rank_0(store, timeout_s), tp.size)
    mapped = exchange(tp, store, "mapped", "no" if segment is None else "yes", timeout_s)
    if fd >= 0:
        os.close(fd)
    return segment if set(mapped) == {"yes"} else None


def _open_of_rank_0(store: Any, timeout_s: float) -> int:
    """A file descriptor of rank 0's segment.

    Raises:
        OSError: if rank 0's process cannot be looked into, or is another one.
    """
    wait_for(store, ["segment"], timeout_s)
    pid, number, name = store.get("segment").decode().split()
    path = f"/proc/{pid}/fd/{number}"
    if not os.readlink(path).startswith(f"/memfd:{name}"):
        raise FileNotFoundError(f"{path} is not rank 0's segment")
    return os.open(path, os.O_RDWR)
