"""Ranks as threads of one process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import BrokenBarrierError
from typing import TypeVar

from sidewinder.collectives.base import Collectives, SingleRank
from sidewinder.collectives.threads import ThreadCollectives, ThreadGroup
from sidewinder.parallel.group import TensorParallel

Result = TypeVar("Result")


def run_ranks(
    tp: int,
    function: Callable[[TensorParallel, Collectives], Result],
    timeout_s: float = 60.0,
    in_turns: bool = True,
) -> list[Result]:
    """Run `function(tp, collectives)` once per rank, each in a thread, and return their results.

    Args:
        tp: number of ranks.
        function: what a rank does; it may use `collectives` with the others.
        timeout_s: seconds after which a rank that waits for the others gives up.
        in_turns: one rank runs at a time, until it waits in `collectives`. False where ranks wait
            for each other in other ways.

    Raises:
        Exception: the first rank's that failed on its own; the others are released, so none hangs.
    """
    group = ThreadGroup(tp, timeout_s)

    def run(rank: int) -> Result:
        collectives = ThreadCollectives(group, rank) if tp > 1 else SingleRank()
        try:
            with group.turns.taken() if in_turns else nullcontext():
                return function(collectives.tp, collectives)
        except BaseException:
            group.abort()
            raise

    with ThreadPoolExecutor(tp) as pool:
        futures = [pool.submit(run, rank) for rank in range(tp)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
