"""Replicas on Ray Serve: each one a tensor-parallel group, behind one address.

A request comes to the `Ingress`, which hashes the beginnings of its prompt and calls the replicas'
deployment. Ray's hook for routing (`PrefixRouter`) picks the replica; there the same application as
in `sidewinder serve` answers, and its messages go back as they come.
"""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

import ray.exceptions
from prometheus_client import generate_latest
from ray import serve
from ray.serve.config import HTTPOptions, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from sidewinder.config import engine_config
from sidewinder.llm import LLM
from sidewinder.logs import logger
from sidewinder.scale_out.metrics import merge
from sidewinder.scale_out.relay import Relayed, answer, plain_scope
from sidewinder.scale_out.routing import Beginnings, PrefixTable, beginnings
from sidewinder.server.app import build_app
from sidewinder.server.config import ServerConfig
from sidewinder.server.errors import ApiError
from sidewinder.server.run import load_tokenizer, start_service

REPLICA_HEADER = "X-Sidewinder-Replica"
"""Names the replica that answered, in every response."""

SCRAPE_S = 5.0
"""How long replicas may take to report their metrics."""

HEALTH_S = 2.0
"""Between two checks of a replica's health by Ray, which starts another one where it is gone."""

LAST_WORDS_S = 1.0
"""How long the open requests of a replica whose engine failed have to hear of it."""

OPERATION_PLACES = 64
"""Requests beside generation (probes, models, tokens) that a replica takes at the same time."""


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray has no types
    """Ray Serve's view of a `PrefixTable`. Calls carry `Beginnings` as their first argument."""

    def initialize_state(self, slack: int = 4, factor: float = 1.25) -> None:
        """Ray calls this once, with `request_router_kwargs`."""
        self._table = PrefixTable(slack, factor)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Replicas came or went."""
        super().update_replicas(replicas)
        self._table.keep(replica.replica_id.unique_id for replica in replicas)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """All candidates, the best first; Ray takes the first that accepts the request."""
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        request_id = pending_request.metadata.internal_request_id
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ranked = self._table.rank(request_id, _prompt(pending_request), list(by_name))

        def drop(future: Any) -> None:
            if future.cancelled():  # the client left before a replica took the request
                self._table.finished(request_id)

        pending_request.future.add_done_callback(drop)
        return [[by_name[name]] for name in ranked]

    def on_request_routed(
        self,
        pending_request: PendingRequest,
        replica_id: ReplicaID,
        result: Any,  # noqa: ARG002
    ) -> None:
        """A replica took the request."""
        request_id = pending_request.metadata.internal_request_id
        self._table.routed(request_id, _prompt(pending_request), replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """The request is over, or the replica did not take it."""
        self._table.finished(internal_request_id, replica_id.unique_id)


def _prompt(request: PendingRequest) -> Beginnings:
    """What the caller passed for the router."""
    given = request.args[0] if request.args else None
    return given if isinstance(given, Beginnings) else Beginnings()


class Replica:
    """One engine with its ranks, and the application over it.

    Args:
        model: folder or hub id.
        config: of the server; where to listen is the ingress's.
        engine_options: of `LLM`.
    """

    def __init__(self, model: str, config: ServerConfig, engine_options: dict[str, Any]) -> None:
        self._name = serve.get_replica_context().replica_id.unique_id
        self._stack = ExitStack()
        llm = self._stack.enter_context(LLM(model, **engine_options))
        load_tokenizer(llm)
        name = config.served_model_name or model
        self._service, self._metrics = start_service(llm, config, name)
        self._stack.callback(self._service.close)
        self._stack.callback(self._service.engine.close)
        self._app = build_app(self._service, self._metrics)
        watching = asyncio.get_running_loop().create_task(self._end_with_the_engine())
        self._stack.callback(watching.cancel)

    async def _end_with_the_engine(self) -> None:
        """Leave once a step failed. A replica that stayed would answer quickest, with errors, and
        so look the least busy."""
        while not self._service.engine.failed:
            await asyncio.sleep(0.1)
        logger.error("the replica ends: %s", self._service.engine.failure)
        await asyncio.sleep(LAST_WORDS_S)
        os._exit(1)

    async def handle(
        self,
        prompt: Beginnings,  # noqa: ARG002  # the router's
        scope: dict[str, Any],
        body: bytes,
    ) -> AsyncGenerator[Message, None]:
        """Answer one HTTP request, in ASGI messages."""
        self.check_health()
        messages = answer(self._app, scope, body)
        try:
            async for message in messages:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message)[REPLICA_HEADER] = self._name
                yield message
        finally:
            await messages.aclose()

    def scrape(self) -> tuple[str, str]:
        """This replica's name and its metrics."""
        return self._name, generate_latest(self._metrics.registry).decode()

    def check_health(self) -> None:
        """Ray asks this every few seconds and replaces a replica that raises."""
        if self._service.engine.failure is not None:
            raise RuntimeError(f"the engine failed: {self._service.engine.failure}")

    def __del__(self) -> None:
        """Ray calls this once open requests are complete."""
        self._stack.close()


class Ingress:
    """Where clients come in; runs no model.

    Args:
        replicas: the deployment of `Replica`.
        max_request_bytes: largest body.
    """

    def __init__(self, replicas: DeploymentHandle, max_request_bytes: int) -> None:
        self._replicas = replicas
        self._max_request_bytes = max_request_bytes

    async def __call__(self, request: Request) -> Response:
        """Pass one HTTP request on."""
        if request.url.path == "/metrics":
            return await self._metrics()
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > self._max_request_bytes:
                message = f"the body is larger than {self._max_request_bytes} bytes; send less"
                return ApiError(413, message).response(request.url.path)
        handle = self._replicas.options(method_name="handle", stream=True)
        messages = handle.remote(beginnings(body), plain_scope(request.scope), body)
        return Relayed(messages, messages.cancel, (ray.exceptions.RayError,))

    async def _metrics(self) -> Response:
        found = self._replicas.broadcast("scrape")
        texts = await found.results_async(timeout_s=SCRAPE_S, return_exceptions=True)
        return merge(dict(text for text in texts if not isinstance(text, BaseException)))


def build(
    model: str,
    config: ServerConfig,
    n_replicas: int = 2,
    num_cpus: float | None = None,
    num_gpus: float = 0,
    n_ingresses: int = 1,
    routing: dict[str, Any] | None = None,
    **engine_options: Any,
) -> Any:
    """A Ray Serve application: `n_replicas` of a model behind OpenAI's endpoints.

    Args:
        model: folder (on every machine) or hub id.
        config: of the server. `host` and `port` are `run`'s; `max_queue` is each replica's.
        n_replicas: how many engines.
        num_cpus: that Ray sets aside for each; None: one per rank.
        num_gpus: that Ray sets aside for each, all on one machine; with GPUs, `tp`.
        n_ingresses: processes that take requests; each remembers what it routed itself.
        routing: options of `PrefixTable`: slack, factor.
        engine_options: of `LLM`. Without `threads`, ranks share `num_cpus`.

    Raises:
        ValueError: for options that cannot be used.
    """
    for name, value in (("n_replicas", n_replicas), ("n_ingresses", n_ingresses)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    options = engine_config(model=model, **engine_options)
    if options.launch == "torchrun":
        raise ValueError("launch='torchrun' cannot serve; use launch='process'")
    PrefixTable(**(routing or {}))  # refuses what cannot be used before anything starts
    cpus = float(options.tp if num_cpus is None else num_cpus)
    engine_options.setdefault("threads", max(1, int(cpus) // options.tp))
    places = options.max_batch_size + config.max_queue + OPERATION_PLACES
    replicas = serve.deployment(
        Replica,
        name="sidewinder",
        num_replicas=n_replicas,
        max_ongoing_requests=places,
        graceful_shutdown_timeout_s=config.drain_s,
        health_check_period_s=HEALTH_S,
        ray_actor_options={"num_cpus": cpus, "num_gpus": num_gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter, request_router_kwargs=routing or {}
        ),
    ).bind(model, config, engine_options)
    return serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=n_ingresses,
        max_ongoing_requests=places * n_replicas,
        graceful_shutdown_timeout_s=config.drain_s,
        ray_actor_options={"num_cpus": 0},
    ).bind(replicas, config.max_request_bytes)


def run(application: Any, config: ServerConfig) -> None:
    """Start `build`'s application on the cluster that `ray.init` joined, at `config`'s address."""
    serve.start(http_options=HTTPOptions(host=config.host, port=config.port))
    serve.run(application)


def wait_and_stop() -> None:
    """Serve until SIGINT or SIGTERM; then let open requests finish and end the replicas."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.wait(1.0):
        continue
    serve.shutdown()
