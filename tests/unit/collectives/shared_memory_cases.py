"""Ranks over shared memory, each a thread of this process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sidewinder.collectives.shared_memory import (
    SharedMemoryCollectives,
    create_segment,
    open_segment,
)
from sidewinder.parallel.group import TensorParallel


def on_ranks(
    size: int, body: Callable[[SharedMemoryCollectives], Any], timeout_s: float = 20.0
) -> list[Any]:
    """`body` on every rank, each a thread; its results in rank order."""
    segment = open_segment(create_segment(size), size)

    def run(rank: int) -> Any:
        tp = TensorParallel(rank, size)
        collectives = SharedMemoryCollectives(tp, segment, timeout_s, own_cores=False)
        try:
            return body(collectives)
        finally:
            collectives.close()

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))
