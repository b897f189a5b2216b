"""An HTTP request carried to an ASGI application in another process, and its answer back."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidewinder.server.errors import ApiError
from sidewinder.server.stream import ClientGone, until_gone

_SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string",
          "root_path", "headers", "client", "server")  # fmt: skip


def plain_scope(scope: Scope) -> dict[str, Any]:
    """The parts of an HTTP scope that mean something in another process."""
    return {name: scope[name] for name in _SCOPE if name in scope}


async def answer(app: ASGIApp, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
    """Run one request through `app`; gives the ASGI messages of its response as they come.

    Closing the generator early tells `app` that the client is gone, and waits for it.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    unread = [body]

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(scope, receive, messages.put)
        finally:
            messages.put_nowait(None)

    running = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
    finally:
        gone.set()
        await running


class Relayed(Response):
    """A response whose messages come from another process.

    Args:
        messages: of the response.
        cancel: called when it is over, however it ended; stops what still makes messages.
        failures: what `messages` raises when the other process is gone; answered 503 if nothing was
            sent before.
    """

    def __init__(
        self,
        messages: AsyncIterator[Message],
        cancel: Callable[[], None],
        failures: tuple[type[Exception], ...],
    ) -> None:
        super().__init__()
        self._messages = messages
        self._cancel = cancel
        self._failures = failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientGone):
                await until_gone(receive, self._send_all(scope, receive, send))
        finally:
            self._cancel()

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        try:
            async for message in self._messages:
                begun = True
                await send(message)
        except self._failures as error:
            if begun:  # the broken connection tells the client
                raise
            reason = f"the replica is gone ({type(error).__name__}); try again"
            failed = ApiError(503, reason, code="replica_gone", retry_after_s=1)
            await failed.response(scope.get("path", ""))(scope, receive, send)
