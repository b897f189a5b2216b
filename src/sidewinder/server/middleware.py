"""Around every request: an id and a log line, the API key, and the limit of the body's size."""

import hmac
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidewinder.logs import logger
from sidewinder.server.errors import MESSAGES, ApiError
from sidewinder.server.metrics import Metrics

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
OPEN_PATHS = frozenset({"/health", "/ready", "/version", "/metrics", "/status"})
"""What probes and monitors read without the API key."""


class RequestLog:
    """Gives every request an id, logs it when it is over, counts its response.

    A client's own X-Request-Id is kept if it is short and plain. The id is in `scope["state"]`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        own = Headers(scope=scope).get("x-request-id", "")
        request_id = own if _ID.fullmatch(own) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 499  # as other servers log a client that left before its answer

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                if scope["path"].startswith(MESSAGES):
                    headers["Request-Id"] = request_id  # Anthropic's name
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # The answer, without details, is already sent: Starlette raises again for the log.
            logger.exception("request %s failed", request_id, extra={"request_id": request_id})
        finally:
            self._finish(scope, request_id, status, time.perf_counter() - started)

    def _finish(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = scope.get("route")
        self._metrics.response(getattr(route, "path", "other"), status)
        # Escaped, so that a path cannot forge lines.
        path = ascii(scope["path"])[1:-1]
        fields = {
            "request_id": request_id,
            "method": scope["method"],
            "path": path,
            "status": status,
            "duration_s": round(seconds, 4),
        }
        text = "%s %s %s %d %.3f s"
        logger.info(text, request_id, scope["method"], path, status, seconds, extra=fields)


class RequireKey:
    """Refuses requests without `key`, as bearer token or, from Anthropic's clients, in `x-api-key`;
    `OPEN_PATHS` need none."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._knows(scope):
            message = (
                "missing or wrong API key; send it as 'Authorization: Bearer KEY' or x-api-key"
            )
            error = ApiError(401, message, code="invalid_api_key")
            await error.response(scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        bearer = self._is_key(token.strip()) and scheme.lower() == "bearer"
        return self._is_key(headers.get("x-api-key", "")) or bearer

    def _is_key(self, given: str) -> bool:
        # Compared in constant time: how long it takes tells nothing about the key. Headers
        # are decoded as Latin-1; encoded back, they are the bytes that were sent.
        return hmac.compare_digest(given.encode("latin-1"), self._key)


class LimitBody:
    """Refuses bodies of more than `max_bytes`, announced or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        message = f"the body is larger than {self._max_bytes} bytes; send less"
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await ApiError(413, message).response(scope["path"])(scope, receive, send)
            return
        n_bytes = 0

        async def receive_limited() -> Message:
            nonlocal n_bytes
            part = await receive()
            n_bytes += len(part.get("body", b""))
            if n_bytes > self._max_bytes:
                raise HTTPException(413, message)
            return part

        await self._app(scope, receive_limited, send)
