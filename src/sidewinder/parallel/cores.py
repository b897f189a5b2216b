"""How many cores this process may use, and how ranks divide them."""

import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


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
        threads: what the user asked for; None divides the usable cores evenly, at least one each.
        ranks: how many ranks share the machine.

    Raises:
        ValueError: if `threads` is below 1.
    """
    if threads is None:
        return max(1, usable_cores() // ranks)
    if threads < 1:
        raise ValueError(f"threads={threads}: a rank needs 1 thread or more (None chooses)")
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
