"""A server that the tests of a session share, and the models that servers run."""

import pytest
from chat_cases import save_talker
from running_server import RunningServer, wait_for

from sidewinder import LLM, SamplingParams
from sidewinder.testing import save_tiny, save_tokenizer

MODEL = {"vocab_size": 287, "tie_word_embeddings": False}
"""Untied, because a tied tiny model mostly repeats its last token."""

OFFLINE_PROMPTS = ["def f", "the self", "in on er"]
OFFLINE_PARAMS = SamplingParams(max_tokens=12, temperature=1.5, seed=5, ignore_eos=True)


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


@pytest.fixture(scope="session")
def talker(tmp_path_factory):
    """The folder of a model whose template shows functions and opens reasoning."""
    return save_talker(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="session")
def talking_server(talker):
    with LLM(talker, device="cpu", threads=1, max_batch_size=4) as llm:
        server = RunningServer(llm)
        yield server
        server.stop()
