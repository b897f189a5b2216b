"""All-reduces of several sizes in turn, over and over: medians, far percentiles, and no hang."""

from collections.abc import Sequence
from typing import Any

import torch

from sidewinder.bench.collectives import WARM_UP, Bench
from sidewinder.collectives.base import Collectives
from sidewinder.collectives.shared_memory import SharedMemoryCollectives, native
from sidewinder.parallel.group import TensorParallel
from sidewinder.parallel.process_executor import ProcessExecutor

TARGET = f"{__name__}:build_alternating"
CALLS_AT_ONCE = 5000
"""Rounds of one request to the ranks: so that none is silent for long."""


def bench_alternating(tp: int, sizes: Sequence[int], calls: int) -> list[dict[str, Any]]:
    """Time `calls` all-reduces of each size, in turn, among `tp` fresh pinned ranks.

    Returns:
        A row per size, then one of the bare exchange of flags, at the pace of the smallest size:
        `median_us`, `p999_us`, `max_us`, and `calls`.

    Raises:
        ValueError: if there is no shared memory to measure.
    """
    if native is None:
        raise ValueError("all-reduce over shared memory needs the native module; build it first")
    executor = ProcessExecutor(tp, TARGET, None, None, transport="shared memory", threads=1)
    try:
        seconds: list[list[float]] = [[] for _ in sizes]
        bare: list[float] = []
        executor.call("alternate", tuple(sizes), WARM_UP)
        for start in range(0, calls, CALLS_AT_ONCE):
            n = min(CALLS_AT_ONCE, calls - start)
            answers = executor.call("alternate", tuple(sizes), n)
            for own, times in zip(seconds, answers, strict=True):
                own += times
            pace = float(torch.tensor(answers[0]).median()) * 1e9
            bare += executor.call("bare", n, pace)
    finally:
        executor.close()
    rows = [{"bytes": size} | percentiles(own) for size, own in zip(sizes, seconds, strict=True)]
    return [*rows, {"bytes": 0} | percentiles(bare)]


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99.9th percentile and maximum in microseconds, and how many."""
    times = torch.tensor(seconds, dtype=torch.float64).sort().values * 1e6
    return {
        "calls": len(times),
        "median_us": float(times[len(times) // 2]),
        "p999_us": float(times[min(len(times) - 1, int(0.999 * len(times)))]),
        "max_us": float(times[-1]),
    }


def build_alternating(
    _: object, __: object, tp: TensorParallel, collectives: Collectives
) -> "Alternating":
    """The worker's target."""
    return Alternating(tp, collectives)


class Alternating(Bench):
    """One rank's part."""

    def alternate(self, sizes: Sequence[int], calls: int) -> list[list[float]]:
        """Seconds of the slower rank, for each size, call by call."""
        messages = [torch.zeros(size // 2, dtype=torch.bfloat16) for size in sizes]
        times: list[list[float]] = [[] for _ in sizes]
        for _ in range(calls):
            for message, own in zip(messages, times, strict=True):
                own.append(self._timed(message))
        return [self._slowest(own).tolist() for own in times]

    def bare(self, calls: int, every_ns: float) -> list[float]:
        """The same of ranks that only spin on each other's flags."""
        assert isinstance(self._collectives, SharedMemoryCollectives)
        nanoseconds = self._collectives.bare_exchanges(calls, every_ns)
        slowest: list[float] = self._slowest([each * 1e-9 for each in nanoseconds]).tolist()
        return slowest
