"""Failures in the shape that OpenAI's clients read, or Anthropic's."""

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

_MESSAGES_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}

MESSAGES = "/v1/messages"
"""Paths that begin so have failures in the shape that Anthropic's clients read."""

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

    def body_for_messages(self) -> dict[str, Any]:
        """The error as Anthropic writes it."""
        kind = _MESSAGES_TYPES.get(self.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def response(self, path: str) -> Response:
        """The error as an HTTP response of `path`."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.allow is not None:
            headers["Allow"] = self.allow
        body = self.body_for_messages() if path.startswith(MESSAGES) else self.body()
        return Response(to_json(body), self.status, headers, "application/json")


def api_error(error: Exception) -> ApiError:
    """Any failure as an `ApiError`; what nobody foresaw is a 500 without details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Overloaded):
        return ApiError(429, str(error), code="overloaded", retry_after_s=error.retry_after_s)
    if isinstance(error, EngineClosed):
        return ApiError(500, f"the engine is down: {error}", code="engine_down")
    if isinstance(error, RequestValidationError):
        return validation_error(error.errors())
    if isinstance(error, HTTPException):
        if error.status_code == 400:  # FastAPI's, of JSON that Python does not read
            message = "the body cannot be read as JSON: no UTF-8, too deep, or a number too long"
            return ApiError(400, message, code="invalid_json")
        return ApiError(error.status_code, str(error.detail))
    return ApiError(500, "internal error; the server's log has the details")


def install(app: FastAPI) -> None:
    """Answer every failure of `app` in this shape."""

    async def answer(request: Request, error: Exception) -> Response:
        path = request.url.path
        if isinstance(error, HTTPException) and error.status_code in (404, 405):
            return _no_route(request, error).response(path)
        if isinstance(error, RequestValidationError) and not _says_json(request):
            message = "the body is read as JSON only; send 'Content-Type: application/json' with it"
            return ApiError(400, message, code="content_type").response(path)
        return api_error(error).response(path)

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


def validation_error(errors: Sequence[Any], n_outer: int = 1) -> ApiError:
    """Unknown fields by name, all at once; else the first thing that is wrong.

    Args:
        errors: pydantic's.
        n_outer: parts of their places that are no field's.
    """
    unknown = [_path(error, n_outer) for error in errors if error["type"] == "extra_forbidden"]
    if unknown:
        names = ", ".join(unknown)
        return ApiError(400, f"unknown or unsupported field: {names}", unknown[0], "unknown_field")
    first = errors[0]
    if first["type"] == "json_invalid":
        detail = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is not valid JSON: {detail}", code="invalid_json")
    path = _path(first, n_outer)
    if not path:
        return ApiError(400, f"the body is not a JSON object: {first['msg']}")
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{path}: {message}", path)


def _path(error: Any, n_outer: int) -> str:
    """Where in the body, as `messages.0.content`; without the names of alternatives."""
    parts = error["loc"][n_outer:]
    kept = [str(part) for part in parts if not (isinstance(part, str) and "[" in part)]
    return ".".join(kept)
