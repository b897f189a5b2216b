"""Answers that end when their client goes away: server-sent events, and work that is awaited."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sidewinder.server.events import COMMENT

Result = TypeVar("Result")

SILENCE_S = 15.0
"""After so long without an event a stream has a comment, or a ping: proxies end connections that
are silent, many after a minute, and a long prompt takes longer than that on a CPU."""


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


async def until_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`, cancelled as soon as the client is gone.

    Args:
        receive: of the request, whose body was read to its end.
        work: builds the answer.

    Raises:
        ClientGone: if the client went first.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


class EventStream(Response):
    """Sends events as they come.

    Args:
        events: what to send, each one whole.
        on_end: called once when the stream is over, whether it ended well, failed, or its client
            went away, even before the first event.
        silence: what to send after `SILENCE_S` without an event.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        on_end: Callable[[], None],
        silence: bytes = COMMENT,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._on_end = on_end
        self._silence = silence
        self._n_sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            await until_gone(receive, self._send_all(send))
        except (ClientGone, OSError):
            return
        finally:
            self._on_end()

    async def _send_all(self, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        speaking = asyncio.create_task(self._break_silence(send))
        try:
            async with aclosing(self._events) as events:
                async for part in events:
                    self._n_sent += 1
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
        await send({"type": "http.response.body", "body": b""})

    async def _break_silence(self, send: Send) -> None:
        while True:
            before = self._n_sent
            await asyncio.sleep(SILENCE_S)
            if self._n_sent == before:
                await send({"type": "http.response.body", "body": self._silence, "more_body": True})
