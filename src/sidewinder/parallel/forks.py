"""Forks of a process that computed: a fork has none of its parent's threads, and OpenMP, which does
not know, waits for them without end."""

import os

_owner: int | None = None
"""The process whose OpenMP threads computed for an engine, in this one's memory."""


def own_threads(threads: int) -> None:
    """Say that this process will compute, on so many threads.

    Raises:
        RuntimeError: if they are several, and it is a fork of a process that computed on several:
            it would hang.
    """
    global _owner
    if threads == 1:
        return
    if _owner not in (None, os.getpid()):
        raise RuntimeError(
            f"process {os.getpid()} is a fork of {_owner}, where an LLM computed on several "
            "threads, which are not in a fork: start processes by 'spawn' or 'forkserver', or use "
            "threads=1"
        )
    _owner = os.getpid()
