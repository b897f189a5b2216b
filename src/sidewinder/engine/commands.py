"""What an event loop asks of the thread that steps its engine."""

import threading
from collections import deque

from sidewinder.engine.intake import Call


class Commands:
    """A queue from many to one thread: requests to add, and ids of requests to abort."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._queue: deque[Call | int] = deque()
        self._stopped = False

    def put(self, command: Call | int) -> None:
        """Add a request, or abort one, before the next step."""
        with self._ready:
            self._queue.append(command)
            self._ready.notify()

    def stop(self) -> None:
        """Let the thread end after the step that it is in. Calling twice is fine."""
        with self._ready:
            self._stopped = True
            self._ready.notify()

    def take(self, wait_s: float) -> tuple[deque[Call | int], bool]:
        """What was asked for since the last time, in order, and whether to go on.

        Args:
            wait_s: how long to wait for something to do, where there is nothing yet.
        """
        with self._ready:
            if wait_s > 0:
                self._ready.wait_for(lambda: self._queue or self._stopped, wait_s)
            taken, self._queue = self._queue, deque()
            return taken, not self._stopped
