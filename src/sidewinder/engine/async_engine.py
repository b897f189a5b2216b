"""`AsyncEngine`: one thread steps the engine; coroutines add requests and await increments.

Everything but the thread's loop runs on the event loop's thread, so the bookkeeping needs no lock;
only the commands to the thread (add, abort, stop) pass through one.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sidewinder.engine.commands import Commands
from sidewinder.engine.engine import Engine
from sidewinder.engine.gathering import Gatherer, Stamped
from sidewinder.engine.intake import Call
from sidewinder.engine.outputs import Increment
from sidewinder.parallel.errors import NotFinite, RankFailure, in_one_line

CHECK_S = 1.0
"""Seconds between two looks whether the ranks still run, while there is nothing to do."""


class Overloaded(RuntimeError):
    """The queue is full.

    Attributes:
        retry_after_s: when there may be room again.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineClosed(RuntimeError):
    """The engine failed or was closed; nothing more will come."""


class Observer(Protocol):
    """Is told, on the event loop's thread, what happens to requests."""

    def tokens(self, n_tokens: int, seconds: float, first: bool) -> None:
        """New tokens came `seconds` after the request (`first`) or its last token."""
        ...

    def finished(self, reason: str, seconds: float) -> None:
        """A request ended after `seconds`: "stop", "length", "abort" or "error"."""
        ...


@dataclass
class _Open:
    """A request that was submitted and is not complete."""

    stream: "RequestStream"
    arrived_s: float
    last_token_s: float


class RequestStream:
    """Increments of requests that were submitted together, in the order in which they come.

    Iterating ends when all are complete; it gives whatever has come since the last time. `close`
    drops what is left of them, at once.
    """

    def __init__(self, engine: "AsyncEngine", ids: Sequence[int]) -> None:
        self._engine = engine
        self._pending = set(ids)
        self._inbox: list[Increment] = []
        self._failure: EngineClosed | None = None
        self._come = asyncio.Event()

    def __aiter__(self) -> "RequestStream":
        return self

    async def __anext__(self) -> list[Increment]:
        """The next increments, one or more: a reader that is slow gets several at once.

        Raises:
            EngineClosed: if the engine failed or was closed.
        """
        if not self._pending:
            raise StopAsyncIteration
        await self._come.wait()
        self._come.clear()
        found, self._inbox = self._inbox, []
        if not found:
            assert self._failure is not None
            raise self._failure
        if self._failure is not None:
            self._come.set()
        for increment in found:
            if increment.output is not None:
                self._pending.discard(increment.request_id)
        return found

    def close(self) -> None:
        """Abort the requests that are not complete. Calling twice is fine."""
        self._engine.abort(self._pending)
        self._pending.clear()

    def put(self, increment: Increment) -> None:
        """For the engine: hand an increment to the reader."""
        self._inbox.append(increment)
        self._come.set()

    def fail(self, failure: EngineClosed) -> None:
        """For the engine: nothing more will come."""
        self._failure = failure
        self._come.set()


class Reservation:
    """Places in the queue, held while a request's prompts are still being prepared."""

    def __init__(self, engine: "AsyncEngine", n_places: int) -> None:
        self._engine = engine
        self.n_places = n_places

    def release(self) -> None:
        """Give back the places that were not used. Calling twice is fine."""
        self._engine.release(self)


class AsyncEngine:
    """Runs requests of many coroutines. Make it, and call it, inside a running event loop.

    Args:
        engine: nobody else may step it.
        max_open: requests that may be open at once, waiting or running.
        observer: is told about tokens and ends.
        gatherer: holds tokens back; by default every step's are delivered at once.

    Attributes:
        failure: why it takes no more requests; None while it does.
        failed: whether that is because a step failed: the ranks' state is unknown then, so the
            owner closes the executor and ends the process.
    """

    def __init__(
        self,
        engine: Engine,
        max_open: int,
        observer: Observer | None = None,
        gatherer: Gatherer | None = None,
    ) -> None:
        self._engine = engine
        self.max_open = max_open
        self._observer = observer
        self._gatherer = gatherer or Gatherer(None)
        self._loop = asyncio.get_running_loop()
        self._commands = Commands()
        self._open: dict[int, _Open] = {}
        self._n_reserved = 0
        self._mean_s = 1.0
        self.failure: str | None = None
        self.failed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def n_open(self) -> int:
        """Requests that are not complete, those being prepared included."""
        return len(self._open) + self._n_reserved

    def check_open(self) -> None:
        """Raise EngineClosed if the engine failed or was closed."""
        if self.failure is not None:
            raise EngineClosed(self.failure)

    def reserve(self, n_places: int) -> Reservation:
        """Keep places for requests that `submit` will bring.

        Raises:
            Overloaded: if there are not so many.
            EngineClosed: if the engine failed or was closed.
        """
        self.check_open()
        if self.n_open + n_places > self.max_open:
            seconds = min(60, max(1, round(self._mean_s)))
            raise Overloaded(
                f"{self.n_open} requests are open and {self.max_open} may be; try again in "
                f"{seconds} s",
                seconds,
            )
        self._n_reserved += n_places
        return Reservation(self, n_places)

    def release(self, reservation: Reservation) -> None:
        """Give back unused places."""
        self._n_reserved -= reservation.n_places
        reservation.n_places = 0

    def submit(
        self, calls: Sequence[Call], reservation: Reservation, arrived_s: float | None = None
    ) -> RequestStream:
        """Put requests in the queue, in the places of `reservation`.

        Args:
            calls: as many as the reservation has places.
            reservation: is used up.
            arrived_s: when their caller came (`time.perf_counter`), for the observer.

        Raises:
            EngineClosed: if the engine failed or was closed.
        """
        assert len(calls) == reservation.n_places, "one place per request"
        self.check_open()
        self.release(reservation)
        stream = RequestStream(self, [call.request.id for call in calls])
        arrived_s = time.perf_counter() if arrived_s is None else arrived_s
        for call in calls:
            self._open[call.request.id] = _Open(stream, arrived_s, arrived_s)
            self._commands.put(call)
        return stream

    def abort(self, request_ids: set[int]) -> None:
        """Drop requests; their slots are free before the next step."""
        for request_id in request_ids:
            if request_id in self._open:
                self._end(request_id, "abort", time.perf_counter())
                self._commands.put(request_id)

    def fail_open(self, reason: str) -> None:
        """End every open request with `EngineClosed(reason)` and take no more."""
        self.failure = self.failure or reason
        for request_id, request in list(self._open.items()):
            request.stream.fail(EngineClosed(self.failure))
            self._end(request_id, "error", time.perf_counter())
            self._commands.put(request_id)

    def close(self) -> None:
        """End what is open, and the thread, after the step that it is in. Does not close the ranks.

        Calling twice is fine.
        """
        self.fail_open("the engine was closed")
        self._commands.stop()
        self._thread.join()

    def _end(self, request_id: int, reason: str, now_s: float) -> None:
        seconds = now_s - self._open.pop(request_id).arrived_s
        if reason in ("stop", "length"):
            self._mean_s += 0.1 * (seconds - self._mean_s)
        if self._observer is not None:
            self._observer.finished(reason, seconds)

    def _deliver(self, increments: Sequence[Stamped]) -> None:
        for increment, now_s in increments:
            request = self._open.get(increment.request_id)
            if request is None:  # aborted while the step ran
                continue
            request.stream.put(increment)
            if increment.token_ids and self._observer is not None:
                first = request.last_token_s == request.arrived_s
                seconds = now_s - request.last_token_s
                self._observer.tokens(len(increment.token_ids), seconds, first)
                request.last_token_s = now_s
            if increment.finish_reason is not None:
                self._end(increment.request_id, increment.finish_reason, now_s)

    def _fail(self, reason: str) -> None:
        self.failed = True
        self.fail_open(reason)

    def _run(self) -> None:
        """The thread: take commands, step, deliver what is due."""
        try:
            while self._take_commands():
                increments, now_s = self._engine.step(), time.perf_counter()
                due = self._gatherer.add(increments, now_s, self._engine.n_running)
                if due:
                    self._call_soon(self._deliver, due)
        # Whatever went wrong, the open requests must end and the process must learn of it.
        except BaseException as error:
            self._call_soon(self._deliver, self._gatherer.rest())
            if not isinstance(error, RankFailure | NotFinite):  # They say all there is to know.
                logging.getLogger(__name__).error("a step failed", exc_info=error)
            self._call_soon(self._fail, f"a step failed ({in_one_line(error)})")

    def _take_commands(self) -> bool:
        """Wait for work; False when it is time to stop."""
        taken, goes_on = self._commands.take(0 if self._engine.has_work else CHECK_S)
        while goes_on and not (taken or self._engine.has_work):
            self._engine.check_ranks()
            taken, goes_on = self._commands.take(CHECK_S)
        for command in taken:
            if isinstance(command, int):
                self._engine.abort(command)
                self._gatherer.drop(command)
            else:
                self._engine.add(command.request, command.tokenizer, command.prompt)
        return goes_on

    def _call_soon(self, function: Callable[..., None], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)
