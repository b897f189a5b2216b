"""Starting and stopping worker processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sidewinder.logs import writes_json
from sidewinder.parallel.channel import Channel
from sidewinder.parallel.protocol import EMPTY

STOP_S = 5.0
"""How long workers may take to stop before they are killed."""
GONE_S = 10.0
"""How long a process may take to end after its socket has closed, to learn its exit status."""


@dataclass
class Worker:
    """One rank as its caller sees it."""

    rank: int
    process: subprocess.Popen[bytes]
    channel: Channel
    lifeline: socket.socket


def spawn_worker(rank: int, threads: int, timeout_s: float, fds: Sequence[int]) -> Worker:
    """Start a fresh interpreter that runs `sidewinder.parallel.worker`.

    It is in a session of its own, so that Ctrl-C reaches the caller alone; its output goes to the
    caller's standard error, as JSON if the caller's lines are.

    Args:
        rank: of the worker.
        threads: its CPU threads; the libraries it imports must not start more.
        timeout_s: longest wait without progress while sending to it; also sets the heartbeat.
        fds: file descriptors that it inherits under the same numbers.
    """
    ours, theirs = socket.socketpair()
    lifeline, their_lifeline = socket.socketpair()
    ours.settimeout(timeout_s)
    arguments = [
        *("--channel", str(theirs.fileno()), "--lifeline", str(their_lifeline.fileno())),
        *("--heartbeat", str(beat_s(timeout_s)), "--parent", str(os.getpid())),
    ]
    if threading.current_thread() is threading.main_thread():
        arguments.append("--die-with-parent")
    if writes_json():
        arguments.append("--log-json")
    with theirs, their_lifeline:
        inherited = (theirs.fileno(), their_lifeline.fileno(), *fds)
        process = start_process(arguments, _environment(threads), inherited)
    return Worker(rank, process, Channel(ours), lifeline)


def start_process(
    arguments: Sequence[str], environment: dict[str, str], fds: Sequence[int]
) -> subprocess.Popen[bytes]:
    """The worker's process itself.

    Args:
        arguments: of `sidewinder.parallel.worker`.
        environment: all of its variables.
        fds: as `spawn_worker`.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "sidewinder.parallel.worker", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=2,
        env=environment,
        pass_fds=fds,
        start_new_session=True,
    )


def beat_s(timeout_s: float) -> float:
    """Seconds between heartbeats: several within any timeout."""
    return min(1.0, timeout_s / 4)


def _environment(threads: int) -> dict[str, str]:
    # The worker finds every module where the caller found it.
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "OMP_NUM_THREADS": str(threads),
    }


def how_it_ended(process: subprocess.Popen[bytes]) -> str:
    """In words, for a worker whose socket has closed."""
    try:
        status = process.wait(GONE_S)
    except subprocess.TimeoutExpired:
        return "closed its connection"
    if status < 0:
        return f"died (signal {-status}, {signal.Signals(-status).name})"
    return f"exited with status {status}"


def stop_workers(workers: list[Worker], owner: int) -> None:
    """Tell the workers to stop, kill those that do not, and release everything.

    Args:
        workers: emptied.
        owner: process id of the caller that started them; a forked child of it does nothing.
    """
    if os.getpid() != owner:
        return
    deadline = time.monotonic() + STOP_S
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.channel.send(EMPTY)
    while workers:
        worker = workers.pop()
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.channel.close()
        worker.lifeline.close()
