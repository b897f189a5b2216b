"""Ranks for tests, forked from a process that has imported all that a rank imports.

The import of torch takes seconds of a core, and the tests start hundreds of ranks. A forked rank
runs the same `sidewinder.parallel.worker` with the same arguments and the same file descriptors.
What differs: its parent is multiprocessing's fork server, and its interpreter is not new. Tests of
that are marked `fresh_ranks`; a rank in an environment of its own is fresh without being asked.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import get_context, set_start_method
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from typing import Any

from sidewinder.parallel import spawn, worker

IMPORTS = ["sidewinder.parallel.rank", "sidewinder.engine.runner", "rank_template"]
UNREAD = ("PYTEST_CURRENT_TEST", "PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR")
"""Variables that change without meaning for a rank; `sys.path` of a fork is its caller's anyway."""

context = get_context("forkserver")
context.set_forkserver_preload(IMPORTS)
start_fresh = spawn.start_process


class ForkedRank:
    """What is used of a `subprocess.Popen`, for a process that the fork server started."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, or the signal's number, negative; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """`returncode`."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; `subprocess.TimeoutExpired` if it still runs after so many seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(f"rank {self.pid}", timeout)
        return self._process.exitcode

    def kill(self) -> None:
        """Nothing if it has ended."""
        self._process.kill()


class Inherited:
    """A file descriptor that a forked rank has under the same number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _Received, (DupFd(self.fd), self.fd)


class _Received:
    """The other side of `Inherited`: a number that multiprocessing chose."""

    def __init__(self, duplicate: Any, fd: int) -> None:
        self.received, self.fd = duplicate.detach(), fd


class RankTemplate:
    """Starts ranks; `start` takes the place of `spawn.start_process`."""

    def __init__(self) -> None:
        self._environment = _read_by_ranks(os.environ)

    def start(
        self, arguments: Sequence[str], environment: dict[str, str], fds: Sequence[int]
    ) -> subprocess.Popen[bytes] | ForkedRank:
        """A fork, or a fresh process if its environment is not the one that the template has."""
        if _read_by_ranks(environment) != self._environment:
            return start_fresh(arguments, environment, fds)
        inherited = [Inherited(fd) for fd in (2, *fds)]
        process = context.Process(target=_run, args=(arguments, inherited), daemon=True)
        process.start()
        return ForkedRank(process)


def _read_by_ranks(environment: Any) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in UNREAD}


def _run(arguments: list[str], inherited: list[Any]) -> None:
    os.setsid()
    set_start_method(None, force=True)
    _renumber(inherited)
    os.dup2(2, 1)
    sys.argv = ["worker", *arguments]
    # To the worker its parent is whoever started it.
    position = sys.argv.index("--parent") + 1
    sys.argv[position] = str(os.getppid())
    worker.run()


def _renumber(inherited: list[Any]) -> None:
    """Put every file descriptor under its number, out of each other's way first."""
    above = max(it.fd for it in inherited) + 1
    for it in inherited:
        moved = fcntl.fcntl(it.received, fcntl.F_DUPFD, above)
        os.close(it.received)
        it.received = moved
    for it in inherited:
        os.dup2(it.received, it.fd)
        os.close(it.received)
