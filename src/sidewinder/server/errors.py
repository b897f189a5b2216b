"""Failures in the shape that OpenAI's clients read."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from sidewinder.engine.async_engine import EngineClosed, Overloaded
from sidewinder.server.events import to_json

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}

SHOWN_PATH = 200
"""Characters of a path that a message repeats."""


class ApiError(Exception):
    """A failure with its HTTP status.

    Args:
        status: HTTP status.
        message: for people.
        param: the request's field that is to blame.
        code: for programs.
        retry_after_s: sent as Retry-After.
        allow: methods that the path takes, sent as Allow.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.allow = allow

    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        """The error as an HTTP response."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.allow is not None:
            headers["Allow"] = self.allow
        return Response(to_json(self.body()), self.status, headers, "application/json")


def api_error(error: Exception) -> ApiError:
    """Any failure as an `ApiError`; what nobody foresaw is a 500 without details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Overloaded):
        return ApiError(429, str(error), code="overloaded", retry_after_s=error.retry_after_s)
    if isinstance(error, EngineClosed):
        return ApiError(500, f"the engine is down: {error}", code="engine_down")
    if isinstance(error, RequestValidationError):
        return _validation_error(error.errors())
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    return ApiError(500, "internal error; the server's log has the details")


def install(app: FastAPI) -> None:
    """Answer every failure of `app` in this shape."""

    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code in (404, 405):
            return _no_route(request, error).response()
        if isinstance(error, RequestValidationError) and not _says_json(request):
            message = "the body is read as JSON only; send 'Content-Type: application/json' with it"
            return ApiError(400, message, code="content_type").response()
        return api_error(error).response()

    expected = (ApiError, Overloaded, EngineClosed, RequestValidationError, HTTPException)
    for kind in (*expected, Exception):
        app.add_exception_handler(kind, answer)


def _says_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind.startswith("application/") and kind.endswith(("/json", "+json"))


def _no_route(request: Request, error: HTTPException) -> ApiError:
    """What the router finds no endpoint for; our own 404s are `ApiError`s already."""
    path = request.url.path[:SHOWN_PATH]
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        message = f"{path} takes {allow}, not {request.method}"
        return ApiError(405, message, code="method_not_allowed", allow=allow)
    known = [getattr(route, "path", "") for route in request.app.routes]
    near = get_close_matches(path, known, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]}? " if near else ""
    message = f"there is no path {path}; {hint}GET /openapi.json lists the endpoints"
    return ApiError(404, message, code="unknown_path")


def _validation_error(errors: Sequence[Any]) -> ApiError:
    """Unknown fields by name, all at once; else the first thing that is wrong."""
    unknown = [_path(error) for error in errors if error["type"] == "extra_forbidden"]
    if unknown:
        names = ", ".join(unknown)
        return ApiError(400, f"unknown or unsupported field: {names}", unknown[0], "unknown_field")
    first = errors[0]
    if first["type"] == "json_invalid":
        detail = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is not valid JSON: {detail}", code="invalid_json")
    path = _path(first)
    if not path:
        return ApiError(400, f"the body is not a JSON object: {first['msg']}")
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{path}: {message}", path)


def _path(error: Any) -> str:
    """Where in the body, as `messages.0.content`; without the names of alternatives."""
    parts = error["loc"][1:]
    kept = [str(part) for part in parts if not (isinstance(part, str) and "[" in part)]
    return ".".join(kept)
