"""A worker shows its caller that it lives, and ends when the caller is gone."""

import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

PR_SET_PDEATHSIG = 1
LOOK_S = 2.0
"""What one look at silent ranks adds to their silence at most. After a longer pause the caller, and
perhaps the whole machine, stood still: that says nothing of the ranks."""


def start_lifeline(
    sock: socket.socket, parent: int, interval_s: float, on_lost: Callable[[], object]
) -> None:
    """Start the thread that writes a byte into `sock` every `interval_s` and watches the caller.

    It calls `on_lost` when the other end of `sock` closes, or when this process's parent is no
    longer `parent` (a forked child of the caller may keep the socket open), whatever the main
    thread is doing.
    """
    sock.setblocking(False)
    watch = threading.Thread(
        target=_watch, args=(sock, parent, interval_s, on_lost), name="lifeline", daemon=True
    )
    watch.start()


def _watch(
    sock: socket.socket, parent: int, interval_s: float, on_lost: Callable[[], object]
) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    beating = True
    while beating and not poll.poll(interval_s * 1000) and os.getppid() == parent:
        beating = _beat(sock)
    on_lost()


def _beat(sock: socket.socket) -> bool:
    """Write a byte; False if nobody can read it any more."""
    try:
        sock.send(b".")
    except BlockingIOError:
        return True  # The caller reads only while it waits for an answer.
    except OSError:
        return False
    return True


def heard(sock: socket.socket) -> bool:
    """Whether bytes have come since the last look; takes them out. For the caller's end."""
    try:
        return bool(sock.recv(1 << 16, socket.MSG_DONTWAIT))
    except OSError:
        return False


class Silence:
    """How long ranks have given no sign of life, for a caller that looks now and then.

    Args:
        lifelines: the caller's ends, in rank order.
    """

    def __init__(self, lifelines: Sequence[socket.socket]) -> None:
        self._lifelines = lifelines
        self._seconds = [0.0] * len(lifelines)
        self._looked_at = time.monotonic()

    def look(self) -> list[float]:
        """Seconds of silence by rank, up to now."""
        now = time.monotonic()
        passed, self._looked_at = min(now - self._looked_at, LOOK_S), now
        self._seconds = [
            0.0 if heard(lifeline) else before + passed
            for lifeline, before in zip(self._lifelines, self._seconds, strict=True)
        ]
        return self._seconds


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even while it is stopped (Linux).

    The kernel means the parent's *thread* that started this process: only for its main thread.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
