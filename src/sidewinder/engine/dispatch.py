"""Shares one engine among callers: each gets the increments of its own requests."""

import threading
from collections.abc import Generator, Sequence

from sidewinder.engine.engine import Engine
from sidewinder.engine.intake import Call
from sidewinder.engine.interrupt import interrupt_after
from sidewinder.engine.outputs import Increment


class Dispatcher:
    """Steps the engine whenever a caller waits, and keeps what belongs to others for them.

    Args:
        engine: whose executor is closed by the owner once `failure` is set.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.RLock()
        self._inbox: dict[int, list[Increment]] = {}
        self.closed: str | None = None

    def increments(self, calls: Sequence[Call]) -> Generator[Increment, None, None]:
        """Run requests; yield what each step adds to them, until all are complete.

        A generator that is closed early drops what is left of its requests.

        Raises:
            RuntimeError: if the engine is closed, or a rank fails.
        """
        pending = {call.request.id for call in calls}
        try:
            self._add(calls)
            while pending:
                for increment in self._wait(pending):
                    if increment.output is not None:
                        pending.discard(increment.request_id)
                    yield increment
        finally:
            self._drop(calls)

    def flush(self) -> None:
        """Have the ranks do now what is pending for kept states."""
        with self._lock:
            self._check_open()
            self._engine.flush()

    def _add(self, calls: Sequence[Call]) -> None:
        with self._lock:
            self._check_open()
            for call in calls:
                self._engine.add(call.request, call.tokenizer, call.prompt)
                self._inbox[call.request.id] = []

    def _wait(self, pending: set[int]) -> list[Increment]:
        """What has come for `pending` requests; steps the engine if nothing has."""
        with self._lock:
            self._check_open()
            waiting = [key for key in sorted(pending) if self._inbox[key]]
            if not waiting:
                self._step()
                waiting = [key for key in sorted(pending) if self._inbox[key]]
            found = [increment for key in waiting for increment in self._inbox[key]]
            for key in waiting:
                self._inbox[key] = []
            return found

    def _step(self) -> None:
        with interrupt_after():
            try:
                increments = self._engine.step()
            except BaseException as error:
                self.closed = f"a step failed ({type(error).__name__}: {error})"
                raise
            for increment in increments:
                self._inbox[increment.request_id].append(increment)

    def _drop(self, calls: Sequence[Call]) -> None:
        with self._lock:
            for call in calls:
                self._engine.abort(call.request.id)
                self._inbox.pop(call.request.id, None)

    def _check_open(self) -> None:
        if self.closed is not None:
            raise RuntimeError(f"this LLM is closed: {self.closed}")
