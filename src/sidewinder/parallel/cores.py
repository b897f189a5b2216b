"""How many cores this process may use, and how ranks divide them."""

import functools
import os
import socket
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from sidewinder.collectives.shared_memory import native
from sidewinder.config import ModelConfig
from sidewinder.memory import keep_freed_memory
from sidewinder.parallel.topology import (
    in_order_of_use,
    memory_nodes,
    physical_cores,
    together,
)

CGROUP_ROOT = Path("/sys/fs/cgroup")
HOLD_PREFIX = "\0sidewinder-core-"
"""Of the abstract socket names that stand for cores."""
MOST_THREADS = 1024
"""Of one rank: beyond what the system allows OpenMP ends the process without a word."""


def usable_cores() -> int:
    """Cores that this process may keep busy: its affinity mask, limited by the cgroup's quota."""
    cores = len(affinity())
    quota = cgroup_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def affinity() -> list[int]:
    """The cores that this process may run on, in ascending order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def threads_per_rank(threads: int | None, ranks: int) -> int:
    """CPU threads of each of `ranks` ranks on this machine.

    Args:
        threads: what the user asked for; None divides the usable physical cores evenly, at least
            one each: a second hardware thread of a core has no registers or caches to add, and
            takes from the first one while it waits.
        ranks: how many ranks share the machine.

    Raises:
        ValueError: if `threads` is below 1, or more than a rank may have.
    """
    if threads is None:
        cores = min(usable_cores(), physical_cores(affinity()))
        return min(MOST_THREADS, max(1, cores // ranks))
    if threads < 1:
        raise ValueError(f"threads={threads}: a rank needs 1 thread or more (None chooses)")
    if threads > MOST_THREADS:
        raise ValueError(
            f"threads={threads}: a rank may have {MOST_THREADS} threads, and {usable_cores()} "
            "cores can be used here; more threads than cores are slower (None chooses)"
        )
    return threads


def cgroup_quota(
    root: Path = CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")
) -> float | None:
    """The smallest CPU quota, in cores, of this process's cgroup and its ancestors, if any.

    Reads version 2 (`cpu.max`) and version 1 (`cpu.cfs_quota_us`). Inside a container the path in
    `membership` may not be visible below `root`; the levels that exist are read.
    """
    quotas = []
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            bases, read = (root, root / "unified"), _quota_v2
        elif "cpu" in controllers.split(","):
            bases, read = (root / "cpu", root / controllers), _quota_v1
        else:
            continue
        for base in bases:
            folder = base / path.lstrip("/")
            levels = [folder, *folder.parents]
            quotas += [read(level) for level in levels[: levels.index(base) + 1]]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    lines = _lines(folder / "cpu.max")
    if not lines or lines[0].startswith("max"):
        return None
    quota, period = lines[0].split()
    return int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    quota, period = _lines(folder / "cpu.cfs_quota_us"), _lines(folder / "cpu.cfs_period_us")
    if not quota or not period or int(quota[0]) <= 0:
        return None
    return int(quota[0]) / int(period[0])


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


@functools.cache
def advise_on_nodes(ranks: int, threads: int) -> None:
    """Say once where more ranks would each have their weights in their own cores' memory: these
    have more threads than a memory node has cores."""
    nodes = memory_nodes(affinity())
    if ranks < nodes and threads * nodes > physical_cores(affinity()):
        warnings.warn(
            f"this machine's cores have {nodes} memory nodes, and {ranks} rank"
            f"{'s read' if ranks > 1 else ' reads'} weights across them; tp={nodes} keeps each "
            "rank's weights near its cores",
            stacklevel=4,
        )


def use_threads(threads: int) -> None:
    """Let torch's operators and the native kernels of this process use `threads` threads."""
    torch.set_num_threads(threads)
    if native is not None:
        native.set_threads(threads)


def prepare_for_steps(model: ModelConfig) -> None:
    """To be called once the weights are loaded: what suits steps better than loading.

    Freed memory is kept for the next step. torch is left one thread where only small operators are
    its own: its threads go on spinning for milliseconds after each of them, on the cores where the
    native kernels' threads wait for work.
    """
    keep_freed_memory()
    # Hybrids' prompts attend by torch.
    if native is not None and native.isa() != "portable" and model.attention is None:
        torch.set_num_threads(1)


class CoreLease:
    """Disjoint cores for the ranks of one group, held against other groups on this machine.

    A core is held by a socket name in Linux's abstract namespace, which the kernel frees when its
    holder ends, however it ends.

    Attributes:
        cores: each rank's cores, in rank order.
    """

    def __init__(self, cores: Sequence[tuple[int, ...]], holds: Sequence[socket.socket]) -> None:
        self.cores = tuple(cores)
        self._holds = list(holds)

    def close(self) -> None:
        """Let other groups have the cores; calling twice is fine."""
        while self._holds:
            self._holds.pop().close()


def lease_cores(ranks: int, threads: int) -> CoreLease | None:
    """Cores for `ranks` ranks of `threads` threads each, if they can be had.

    They can be had if the affinity mask and the cgroup's quota give every thread its own core, and
    no other group holds them. Every thread gets a physical core of its own as long as there are
    any, and a rank's are neighbours, in one memory node where that is possible.
    """
    wanted = ranks * threads
    if sys.platform != "linux" or usable_cores() < wanted:
        return None
    free: list[int] = []
    holds: list[socket.socket] = []
    for core in in_order_of_use(affinity()):
        if len(free) < wanted and (hold := _hold(core)) is not None:
            free.append(core)
            holds.append(hold)
    free = together(free)
    cores = [tuple(free[rank * threads : (rank + 1) * threads]) for rank in range(ranks)]
    lease = CoreLease(cores, holds)
    if len(free) < wanted:
        lease.close()
        return None
    return lease


def _hold(core: int) -> socket.socket | None:
    hold = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        hold.bind(f"{HOLD_PREFIX}{core}")
    except OSError:
        hold.close()
        return None
    return hold
