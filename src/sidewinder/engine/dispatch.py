"""Shares one engine among callers: each gets the increments of its own requests."""

import threading
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from sidewinder.engine.engine import Engine
from sidewinder.engine.intake import Call
from sidewinder.engine.interrupt import interrupt_after
from sidewinder.engine.outputs import Increment
from sidewinder.parallel.errors import in_one_line
from sidewinder.state.cache.cache import StateCache

Result = TypeVar("Result")


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

    def with_cache(self, function: Callable[[StateCache], Result]) -> Result:
        """Call `function` between steps; the ranks have done what it asked for when this returns.

        Raises:
            RuntimeError: if the engine is closed, or a rank fails.
        """
        with self._lock:
            self.check_open()
            result = function(self._engine.cache)
            self._on_ranks(self._engine.flush)
            return result

    def _add(self, calls: Sequence[Call]) -> None:
        with self._lock:
            self.check_open()
            for call in calls:
                self._engine.add(call.request, call.tokenizer, call.prompt)
                self._inbox[call.request.id] = []

    def _wait(self, pending: set[int]) -> list[Increment]:
        """What has come for `pending` requests; steps the engine if nothing has."""
        with self._lock:
            self.check_open()
            waiting = [key for key in sorted(pending) if self._inbox[key]]
            if not waiting:
                self._step()
                waiting = [key for key in sorted(pending) if self._inbox[key]]
            found = [increment for key in waiting for increment in self._inbox[key]]
            for key in waiting:
                self._inbox[key] = []
            return found

    def _step(self) -> None:
        def deliver() -> None:
            # Inside, so that Ctrl-C loses nothing.
            for increment in self._engine.step():
                self._inbox[increment.request_id].append(increment)

        self._on_ranks(deliver)

    def _on_ranks(self, function: Callable[[], Result]) -> Result:
        """Call a method of the engine; if it raises, the ranks' state is unknown."""
        with interrupt_after():
            try:
                return function()
            except BaseException as error:
                self.closed = f"a step failed ({in_one_line(error)})"
                raise

    def _drop(self, calls: Sequence[Call]) -> None:
        with self._lock:
            for call in calls:
                self._engine.abort(call.request.id)
                self._inbox.pop(call.request.id, None)

    def check_open(self) -> None:
        """Raise RuntimeError, with the reason, if the engine is closed."""
        if self.closed is not None:
            raise RuntimeError(f"this LLM is closed: {self.closed}")
