"""From options to a process that serves until it is told to stop."""

import asyncio
import errno
import gc
import signal
import socket
import time
from importlib import import_module
from types import FrameType
from typing import Any

import uvicorn
from huggingface_hub.utils.tqdm import disable_progress_bars

from sidewinder.engine.async_engine import AsyncEngine
from sidewinder.engine.gathering import EVENTS_PER_S, Gatherer
from sidewinder.llm import LLM
from sidewinder.logs import logger, start_logging
from sidewinder.server.app import build_app
from sidewinder.server.config import ServerConfig
from sidewinder.server.metrics import Metrics, Throughput
from sidewinder.server.service import Service

FLUSH_S = 5
"""How long responses that are complete may take to reach slow clients at the end."""

KEEP_ALIVE_S = 75
"""How long an idle connection stays open: longer than clients (5 s) and proxies (60 s) keep it, so
that they close it first and none sends a request into a connection that is being closed."""

DONE, FAILED, INTERRUPTED = 0, 1, 130


class Server(uvicorn.Server):
    """uvicorn, with a drain: on SIGTERM or Ctrl-C, readiness turns false and requests are refused
    while open ones finish; a second signal, or `drain_s`, ends them.

    Args:
        config: uvicorn's.
        service: is drained.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._deadline_s: float | None = None
        self.signal: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """A signal came."""
        if self.signal is not None:
            self._deadline_s = 0.0
        self.signal = sig
        self.drain()

    def drain(self) -> None:
        """Take no more requests; stop once the open ones are complete, or time is up."""
        self._service.draining = True
        if self._deadline_s is None:
            self._deadline_s = time.monotonic() + self._service.config.drain_s

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to stop; asked ten times a second."""
        engine = self._service.engine
        if engine.failure is not None:
            return True
        if self._deadline_s is not None:
            if engine.n_open == 0:
                return True
            if time.monotonic() >= self._deadline_s:
                logger.warning("%d requests did not finish in time", engine.n_open)
                engine.fail_open("the server is shutting down")
                return True
        return await super().on_tick(counter)


def serve(model: str, config: ServerConfig, **engine_options: Any) -> int:
    """Load `model` and serve it until a signal comes or a rank fails; returns the exit status.

    Raises:
        ValueError: for options or a model that cannot be used.
        OSError: if the address is not free; nothing is loaded then.
        RuntimeError: if a rank fails while it starts.
    """
    if engine_options.get("launch") == "torchrun":
        raise ValueError("launch='torchrun' cannot serve: one process takes all requests; "
                         "use launch='process'")  # fmt: skip
    if config.log_format == "json":
        _quiet_libraries()
    start_logging(config.log_format)
    name = config.served_model_name or model
    with open_socket(config) as listener:
        logger.info("loading model %s", name)
        with LLM(model, **engine_options) as llm:
            return _serve(llm, config, listener, name)


def _serve(llm: LLM, config: ServerConfig, listener: socket.socket, name: str) -> int:
    load_tokenizer(llm)
    # What is loaded stays: walking over it stops all streams for 0.15 s each time.
    gc.collect()
    gc.freeze()
    return asyncio.run(serve_llm(llm, config, listener, name))


def _quiet_libraries() -> None:
    """Let libraries set their loggers up now, before `start_logging` takes these over, and draw no
    progress bars."""
    import_module("transformers.utils.logging")
    disable_progress_bars()


def open_socket(config: ServerConfig) -> socket.socket:
    """A socket bound to the address; it listens once the server runs.

    Raises:
        ValueError: if the host is no address, or none of this machine.
        OSError: if the port is not free, or not ours.
    """
    host = f"host={config.host!r}"
    remedy = "use 127.0.0.1, 0.0.0.0 (open to the network) or an address of this machine"
    try:
        kind, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(kind, socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"{host} is not an address ({error}); {remedy}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ValueError(f"{host} is not an address of this machine; {remedy}") from error
        where = f"{config.host}:{config.port}"
        raise OSError(f"cannot listen on {where}: {error.strerror}; use another --port") from error
    return listener


def start_service(llm: LLM, config: ServerConfig, name: str) -> tuple[Service, Metrics]:
    """Let a thread step the engine of a loaded model, for the running event loop's requests.

    Whoever calls this closes the service's engine and the service.
    """
    metrics = Metrics(llm, name)
    slots = llm.runner_report.pool.n_slots
    gatherer = Gatherer(EVENTS_PER_S if llm.config.scheduling == "throughput" else None)
    engine = AsyncEngine(llm.engine, slots + config.max_queue, metrics, gatherer)
    metrics.watch(engine)
    return Service(llm, engine, config, name), metrics


async def serve_llm(llm: LLM, config: ServerConfig, listener: socket.socket, name: str) -> int:
    """Serve a loaded model on `listener`; returns the exit status."""
    service, metrics = start_service(llm, config, name)
    engine = service.engine
    server = Server(_uvicorn_config(build_app(service, metrics)), service)
    lines = asyncio.create_task(_log_throughput(llm, service, metrics))
    _log_start(llm, config, listener, name)
    try:
        await server.serve(sockets=[listener])
    finally:
        failure = engine.failure
        lines.cancel()
        engine.close()
        service.close()
    if engine.failed:
        logger.error("stopped: %s", failure)
        return FAILED
    logger.info("stopped")
    return INTERRUPTED if server.signal == signal.SIGINT else DONE


def load_tokenizer(llm: LLM) -> None:
    """Now, so that the first request need not wait for it; without one, token ids are served."""
    try:
        llm.tokenizer.load()
    except ValueError as error:
        logger.warning("replies have no text: %s", error)


def _uvicorn_config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=FLUSH_S,
    )


def _log_start(llm: LLM, config: ServerConfig, listener: socket.socket, name: str) -> None:
    ranks = llm.runner_report
    logger.info(
        "model %s: tp=%d, %s, %s, all-reduce path: %s, %d state slots",
        name,
        llm.config.tp,
        ranks.device,
        ranks.dtype,
        ranks.collectives,
        ranks.pool.n_slots,
    )
    host = f"[{config.host}]" if ":" in config.host else config.host
    logger.info("listening on http://%s:%d", host, listener.getsockname()[1])


async def _log_throughput(llm: LLM, service: Service, metrics: Metrics) -> None:
    if not service.config.log_interval_s:
        return
    throughput = Throughput(llm, service.engine, metrics)
    while True:
        await asyncio.sleep(service.config.log_interval_s)
        line = throughput.line()
        if line is not None:
            logger.info(line)
