"""The endpoints."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp

from sidewinder import __version__
from sidewinder.server import errors, params
from sidewinder.server.choice import Choice
from sidewinder.server.conversation import shown
from sidewinder.server.errors import ApiError
from sidewinder.server.events import to_json
from sidewinder.server.messages import conversation as messages
from sidewinder.server.messages.schemas import CountRequest, MessagesRequest
from sidewinder.server.metrics import Metrics
from sidewinder.server.middleware import LimitBody, RequestLog, RequireKey
from sidewinder.server.params import Generation
from sidewinder.server.replies import Reply
from sidewinder.server.responses import conversation as responses
from sidewinder.server.responses.schemas import ResponseRequest
from sidewinder.server.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from sidewinder.server.service import Service
from sidewinder.server.stream import ClientGone, EventStream, until_gone
from sidewinder.server.translated import translated

PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""What a browser lets the status page do: run its own script and read from this server."""


def build_app(service: Service, metrics: Metrics) -> ASGIApp:
    """The whole server as one ASGI application."""
    app = FastAPI(title="Sidewinder", version=__version__, docs_url=None, redoc_url=None)
    errors.install(app)
    _add_generation(app, service)
    _add_tokens(app, service)
    _add_models(app, service)
    _add_operation(app, service, metrics)
    limited: ASGIApp = LimitBody(app, service.config.max_request_bytes)
    if service.config.api_key is not None:
        limited = RequireKey(limited, service.config.api_key)
    return RequestLog(limited, metrics)


def _add_generation(app: FastAPI, service: Service) -> None:
    async def answer(
        request: Request, asked: Generation, reply: Callable[[list[Choice]], Reply]
    ) -> Response:
        try:
            running = await service.start(asked, reply, request.receive)
            if asked.stream:
                return EventStream(
                    service.events(running), running.stream.close, running.reply.silence
                )
            with closing(running.stream):
                return _json(await until_gone(request.receive, service.whole(running)))
        except ClientGone:
            return Response(status_code=499)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        service.check_model(body.model)
        asked, name = params.completion(body), request.state.request_id
        return await answer(request, asked, partial(service.completion_reply, name, asked, False))

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        service.check_model(body.model)
        asked, name = params.chat(body, service.default_max_tokens), request.state.request_id
        return await answer(request, asked, partial(service.completion_reply, name, asked, True))

    @app.post("/v1/responses")
    async def make_response(body: ResponseRequest, request: Request) -> Response:
        service.check_model(body.model)
        asked = translated(responses.as_chat(body), service.default_max_tokens, responses.NAMES)
        reply = partial(service.response_reply, request.state.request_id, body)
        return await answer(request, asked, reply)

    @app.post("/v1/messages")
    async def make_message(body: MessagesRequest, request: Request) -> Response:
        service.check_model(body.model)
        asked = translated(messages.as_chat(body), body.max_tokens, messages.NAMES)
        reply = partial(service.message_reply, request.state.request_id, body)
        return await answer(request, replace(asked, fits=True), reply)


def _add_tokens(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        service.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages", "prompt")
        tokens = await service.tokenize(shown(body) if body.prompt is None else body.prompt)
        count = {"count": len(tokens), "max_model_len": service.max_model_len}
        return _json(count | {"tokens": tokens})

    @app.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountRequest) -> Response:
        service.check_model(body.model)
        (prompt,) = translated(messages.as_chat(body), 1, messages.NAMES).prompts
        return _json({"input_tokens": len(await service.tokenize(prompt))})

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        service.check_model(body.model)
        return _json({"prompt": await service.detokenize(body.tokens)})


def _add_models(app: FastAPI, service: Service) -> None:
    card = {
        "id": service.name,
        "object": "model",
        "created": service.started_s,
        "owned_by": "sidewinder",
        "max_model_len": service.max_model_len,
    }

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        service.check_model(name)
        return _json(card)


def _add_operation(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Liveness: whether the process is worth keeping."""
        if service.engine.failure is not None:
            return _json({"status": "failed", "reason": service.engine.failure}, 503)
        return _json({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        """Readiness: whether new requests should come here."""
        if service.engine.failure is not None:
            return _json({"ready": False, "reason": service.engine.failure}, 503)
        if service.draining:
            return _json({"ready": False, "reason": "shutting down"}, 503)
        return _json({"ready": True})

    @app.get("/version")
    async def version() -> Response:
        return _json({"version": __version__})

    page = files("sidewinder.server").joinpath("status.html").read_text(encoding="utf-8")

    @app.get("/status")
    async def status() -> Response:
        """The status page: a static file that draws the metrics."""
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/metrics")
    async def scrape() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")
