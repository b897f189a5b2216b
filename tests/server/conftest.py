"""A real server on a free loopback port, in a thread of the test process."""

import asyncio
import contextlib
import threading
import time

import httpx
import pytest

from sidewinder import LLM, SamplingParams
from sidewinder.server import run
from sidewinder.server.config import ServerConfig
from sidewinder.testing import save_tiny, save_tokenizer

NAME = "tiny"
MODEL = {"vocab_size": 287, "tie_word_embeddings": False}
"""Untied, because a tied tiny model mostly repeats its last token."""

SERVER = run.Server
OFFLINE_PROMPTS = ["def f", "the self", "in on er"]
OFFLINE_PARAMS = SamplingParams(max_tokens=12, temperature=1.5, seed=5, ignore_eos=True)


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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = save_tiny("mamba", tmp_path_factory.mktemp("served"), **MODEL)
    return save_tokenizer(folder)


@pytest.fixture(scope="session")
def llm(checkpoint):
    options = {"device": "cpu", "threads": 1, "max_batch_size": 4, "max_step_tokens": 64}
    with LLM(checkpoint, **options) as llm:
        yield llm


@pytest.fixture(scope="session")
def llm_of_its_own(checkpoint):
    """For servers that one test starts, one after the other; it has two slots."""
    with LLM(checkpoint, device="cpu", threads=1, max_batch_size=2) as llm:
        yield llm


@pytest.fixture(scope="session")
def offline_texts(llm):
    """What `LLM.generate` makes of `OFFLINE_PROMPTS`, before a server takes the engine over."""
    return [output.text for output in llm.generate(OFFLINE_PROMPTS, OFFLINE_PARAMS)]


@pytest.fixture(scope="session")
def shared_server(llm, offline_texts):  # noqa: ARG001
    server = RunningServer(
        llm, max_queue=60, max_request_bytes=100_000, max_choices=32, default_max_tokens=25
    )
    yield server
    server.stop()


@pytest.fixture
def server(shared_server):
    """The shared server, checked to be idle again after the test."""
    yield shared_server
    wait_for(lambda: shared_server.engine.n_open == 0 and shared_server.llm.engine.n_running == 0)


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@contextlib.contextmanager
def serving(llm, **options):
    """A server of its own for one test."""
    server = RunningServer(llm, **options)
    try:
        yield server
    finally:
        server.stop()
