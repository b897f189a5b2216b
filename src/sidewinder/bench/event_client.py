"""Requests whose answers are server-sent events, read with little work per event.

A client that shares a machine with the server must not be what is measured: an `httpx` stream takes
more time per event than a small model's token does.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httptools

OnEvent = Callable[[bytes, float], None]


class BrokenConnection(ConnectionError):
    """The server closed the connection, or sent what is no HTTP."""


class Connection(asyncio.Protocol):
    """One connection, for one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._on_event: OnEvent | None = None
        self._done: asyncio.Future[None] | None = None
        self._now_s = 0.0
        self._stays_open = False
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""

    @property
    def is_open(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def post(self, head: bytes, body: bytes, on_event: OnEvent) -> tuple[int, bytes]:
        """Send a request; returns the status, and the body of an answer that is no 200.

        Args:
            head: request line and headers, complete.
            body: of the request.
            on_event: gets the data of each event and when it came (`time.perf_counter`).

        Raises:
            BrokenConnection: if the answer does not come to its end.
        """
        assert self._transport is not None
        self._reset()
        self._on_event = on_event
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(head + body)
        await self._done
        if not self._stays_open:
            self.close()
        return self._parser.get_status_code(), self._rest

    def close(self) -> None:
        """End the connection. Calling twice is fine."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """For asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """For asyncio."""
        self._now_s = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """For asyncio."""
        self._fail("the server closed the connection" if exc is None else str(exc))

    def on_body(self, part: bytes) -> None:
        """For the parser: a part of the body."""
        self._rest += part
        if self._parser.get_status_code() != 200 or self._on_event is None:
            return
        *events, self._rest = self._rest.split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                self._on_event(event[6:], self._now_s)

    def on_message_complete(self) -> None:
        """For the parser: the answer is complete."""
        # Only here the parser still knows.
        self._stays_open = self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, message: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(BrokenConnection(message))


class EventClient:
    """Connections to one server, kept for later requests.

    Args:
        url: `http://host:port` or `https://...`; a path before the endpoint's is kept.
        headers: of every request.
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        secure = parts.scheme == "https"
        self._port = parts.port or (443 if secure else 80)
        self._ssl = ssl.create_default_context() if secure else None
        self._path = parts.path.rstrip("/")
        lines = {"Host": parts.netloc.rpartition("@")[2], "Content-Type": "application/json"}
        self._headers = "".join(f"{key}: {text}\r\n" for key, text in (lines | headers).items())
        self._idle: list[Connection] = []

    async def post(self, path: str, body: bytes, on_event: OnEvent) -> tuple[int, bytes]:
        """As `Connection.post`.

        Raises:
            OSError: if the server cannot be reached, or breaks off.
        """
        connection = await self._connection()
        length = f"Content-Length: {len(body)}\r\n\r\n"
        head = f"POST {self._path}{path} HTTP/1.1\r\n{self._headers}{length}".encode()
        try:
            answer = await connection.post(head, body, on_event)
        except BaseException:
            connection.close()
            raise
        if connection.is_open:
            self._idle.append(connection)
        return answer

    def close(self) -> None:
        """End all connections."""
        while self._idle:
            self._idle.pop().close()

    async def _connection(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).is_open:
                return connection
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(Connection, self._host, self._port, ssl=self._ssl)
        return made
