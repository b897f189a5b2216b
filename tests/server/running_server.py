"""A real server on a free loopback port, in a thread of the test process."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import httpx
import pytest

from sidewinder.server import run
from sidewinder.server.config import ServerConfig

NAME = "tiny"
SERVER = run.Server
ENDLESS = {"prompt": "ab", "max_tokens": 10**6, "ignore_eos": True}


class RunningServer:
    """Serves `llm` until `stop`.

    Attributes:
        url: where it listens.
        server: the `run.Server`, whose `drain` a test may call.
        status: exit status, once it has ended.
    """

    def __init__(self, llm, **options):
        self.llm = llm
        self.config = ServerConfig(port=0, log_interval_s=0, **options)
        self.listener = run.open_socket(self.config)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.server = self.service = self.status = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        wait_for(lambda: self.server is not None and self.server.started)

    def _run(self):
        def capture(config, service):
            self.service = service
            self.server = SERVER(config, service)
            return self.server

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "Server", capture)
            self.status = asyncio.run(run.serve_llm(self.llm, self.config, self.listener, NAME))

    @property
    def engine(self):
        return self.service.engine

    def client(self, **options):
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(40)
        assert not self.thread.is_alive(), "the server did not stop"


def wait_for(condition, timeout_s=30.0):
    """Wait until `condition()` is true; fail after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(llm, **options):
    """A server of its own for one test."""
    server = RunningServer(llm, **options)
    try:
        yield server
    finally:
        server.stop()


def open_request(server, **fields):
    """Send a request by hand and return the socket, its answer unread."""
    body = json.dumps(ENDLESS | fields).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", httpx.URL(server.url).port), timeout=10)
    connection.sendall(head.encode() + body)
    return connection
