"""How much memory a rank may use, and how many slots and KV pages fit in it."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from sidewinder.collectives.base import Collectives
from sidewinder.config import EngineConfig
from sidewinder.state.cache.entry import CacheSizes
from sidewinder.state.spec import PAGE_SIZE

SHARE_OF_FREE = 0.8
"""Part of the free memory that state and keys and values may take; activations need the rest."""

SHARE_OF_KV = 0.75
"""Part of that for keys and values, where `kv_cache_tokens` leaves the size to us."""

DEFAULT_LENGTH = 4096
"""Tokens per sequence that the KV cache is sized for where no `max_model_len` is given."""

SHARE_OF_CACHE = 0.25
"""Part of what is free beside weights and pool that kept states may take by default."""

MOST_OF_CACHE_ON_CPU = 4 << 30
"""Most bytes that the CPU's ranks together take for kept states by default: others need some."""


@dataclass(frozen=True)
class PoolSize:
    """Slots and pages of every rank's state pool.

    Attributes:
        n_slots: sequences that run at once.
        n_pages, page_size: hybrids: KV pages, and tokens per page; else 0.
        n_draft_slots: slots beside the sequences' own, for drafts.
    """

    n_slots: int
    n_pages: int = 0
    page_size: int = 0
    n_draft_slots: int = 0

    @property
    def all_slots(self) -> int:
        """Slots of sequences and of drafts."""
        return self.n_slots + self.n_draft_slots


def check_weights_fit(weight_bytes: int, free_bytes: int) -> None:
    """Raise ValueError if memory cannot hold the weights: the system would end the process.

    Args:
        weight_bytes: of the rank that has the most.
        free_bytes: of the rank with the least memory.
    """
    if weight_bytes > free_bytes:
        raise ValueError(
            f"the weights take {_mib(weight_bytes)} per rank and {_mib(free_bytes)} are free; use "
            "dtype='bfloat16', weight_dtype='int8', or more GPUs or machines (tp)"
        )


def fit_pool(engine: EngineConfig, slot_bytes: int, page_bytes: int, free_bytes: int) -> PoolSize:
    """The largest pool, up to what `engine` asks for, that one rank's `free_bytes` hold.

    Args:
        engine: `max_batch_size`, `max_model_len`, `kv_cache_tokens` and `speculate` are wishes.
        slot_bytes: one sequence's state, on the rank where it is largest.
        page_bytes: one KV page, likewise; 0 for pure SSMs.
        free_bytes: of the rank with the least memory.

    Raises:
        ValueError: if not even one slot fits, or `kv_cache_tokens` do not.
    """
    budget = int(free_bytes * SHARE_OF_FREE)
    n_pages = _n_pages(engine, page_bytes, budget) if page_bytes else 0
    left = budget - n_pages * page_bytes
    n_slots = min(engine.max_batch_size, left // slot_bytes)
    if n_slots < 1:
        raise ValueError(
            f"the state of one sequence takes {_mib(slot_bytes)} per rank and {_mib(left)} are "
            "left for it; use more ranks (tp), state_dtype='bfloat16' or a smaller kv_cache_tokens"
        )
    n_draft_slots = min(engine.speculate, left // slot_bytes - n_slots)
    return PoolSize(n_slots, n_pages, PAGE_SIZE if n_pages else 0, n_draft_slots)


def _n_pages(engine: EngineConfig, page_bytes: int, budget: int) -> int:
    if engine.kv_cache_tokens is not None:
        n_pages = -(-engine.kv_cache_tokens // PAGE_SIZE)
        if n_pages * page_bytes > budget:
            raise ValueError(
                f"kv_cache_tokens={engine.kv_cache_tokens} takes {_mib(n_pages * page_bytes)} per "
                f"rank and {_mib(budget)} may be used; use at most "
                f"{budget // page_bytes * PAGE_SIZE}, or more ranks (tp)"
            )
        return n_pages
    pages_per_sequence = -(-(engine.max_model_len or DEFAULT_LENGTH) // PAGE_SIZE)
    wanted = engine.max_batch_size * pages_per_sequence
    return max(1, min(wanted, int(budget * SHARE_OF_KV) // page_bytes))


def fit_cache(
    engine: EngineConfig,
    pool: PoolSize,
    state_bytes: int,
    page_bytes: int,
    free_bytes: int,
    host_bytes: int,
) -> CacheSizes:
    """Budgets of kept states on every rank.

    Args:
        engine: `state_cache_bytes` and `state_cache_host_bytes` are wishes; None chooses.
        pool: that stands beside them.
        state_bytes: one kept state, on the rank where it is largest.
        page_bytes: one KV page, likewise; 0 for pure SSMs.
        free_bytes: of the rank with the least memory, without its pool.
        host_bytes: host memory per rank that is free; 0 where it is the device's own.

    Raises:
        ValueError: if `state_cache_bytes` asks for more than is free.
    """
    wanted, on_host = engine.state_cache_bytes, engine.state_cache_host_bytes
    if wanted is not None and wanted > max(free_bytes, 0):
        raise ValueError(
            f"state_cache_bytes={wanted} is more than the {_mib(max(free_bytes, 0))} that are free "
            "per rank; lower it, or max_batch_size, or use more ranks (tp)"
        )
    if wanted is None:
        wanted = max(0, int(free_bytes * SHARE_OF_CACHE))
        if engine.device == "cpu":
            wanted = min(wanted, MOST_OF_CACHE_ON_CPU // engine.tp)
    return CacheSizes(
        device_bytes=wanted,
        host_bytes=int(host_bytes * SHARE_OF_CACHE) if on_host is None else on_host,
        state_bytes=state_bytes,
        token_bytes=page_bytes // PAGE_SIZE,
        interval=engine.state_cache_interval,
        page_size=pool.page_size,
    )


def host_free_bytes(device: torch.device, collectives: Collectives) -> int:
    """Host memory per rank that is free beside the device's; every rank calls."""
    free = 0 if device.type == "cpu" else free_bytes(torch.device("cpu")) // collectives.tp.size
    return min(gather_integer(free, device, collectives))


def least_free_bytes(device: torch.device, collectives: Collectives) -> int:
    """Free memory of the rank that has the least; every rank calls. CPU ranks share a machine."""
    free = free_bytes(device)
    if device.type == "cpu":
        free //= collectives.tp.size
    return min(gather_integer(free, device, collectives))


def gather_integer(value: int, device: torch.device, collectives: Collectives) -> list[int]:
    """Every rank's `value`, in rank order, on every rank."""
    own = torch.tensor([value], dtype=torch.int64, device=device)
    values: list[int] = collectives.all_gather(own, [1] * collectives.tp.size).tolist()
    return values


def free_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on `device`; on the CPU within the cgroup's limit."""
    if device.type == "cuda":
        # torch keeps what was freed, as weights before they were rounded, and the driver counts it.
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_available_of_machine(), _available_of_cgroup(Path("/sys/fs/cgroup"))]
    return min(limit for limit in limits if limit is not None)


def _available_of_machine() -> int:
    file = Path("/proc/meminfo")
    if file.is_file():
        for line in file.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _available_of_cgroup(root: Path) -> int | None:
    limit, used = root / "memory.max", root / "memory.current"
    if not (limit.is_file() and used.is_file()):
        return None
    text = limit.read_text().strip()
    if text == "max":
        return None
    return max(0, int(text) - int(used.read_text()) + _cached_files(root / "memory.stat"))


def _cached_files(file: Path) -> int:
    """Bytes of files that the cgroup has in memory, a checkpoint's say: given up when needed."""
    lines = file.read_text().splitlines() if file.is_file() else []
    numbers = dict(line.split() for line in lines)
    return int(numbers.get("active_file", 0)) + int(numbers.get("inactive_file", 0))


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.1f} MiB"
