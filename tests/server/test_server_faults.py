"""Clients that vanish, queues that fill, steps that fail, and addresses that cannot be."""

import json
import threading

import httpx
import pytest
from running_server import ENDLESS, open_request, serving, wait_for

from sidewinder import LLM
from sidewinder.server import run
from sidewinder.server.config import ServerConfig


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_frees_the_slot(server, stream):
    connections = [open_request(server, stream=stream) for _ in range(6)]  # two of them wait
    wait_for(lambda: server.llm.engine.n_running == 4 and server.engine.n_open == 6)
    for connection in connections:
        connection.close()
    wait_for(lambda: server.llm.engine.n_running == 0 and server.engine.n_open == 0)


def test_full_queue_is_answered_429(llm_of_its_own):
    with serving(llm_of_its_own, max_queue=1, drain_s=0) as server, server.client() as client:
        connections = [open_request(server) for _ in range(3)]  # two run, one waits
        wait_for(lambda: server.engine.n_open == 3)
        refused = client.post("/v1/completions", json=ENDLESS)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert client.get("/ready").status_code == 200
        never = client.post("/v1/completions", json=ENDLESS | {"n": 4})  # also when all is idle
        assert never.status_code == 400
        for connection in connections:
            connection.close()
        wait_for(lambda: server.engine.n_open == 0)
        assert client.post("/v1/completions", json=ENDLESS | {"max_tokens": 1}).status_code == 200


def test_drain_finishes_what_is_open_and_refuses_the_rest(llm_of_its_own):
    with serving(llm_of_its_own, drain_s=30) as server, server.client() as client:
        assert client.get("/ready").status_code == 200  # opens a connection that stays
        answers = []

        def ask():
            with server.client() as own:
                answers.append(own.post("/v1/completions", json=ENDLESS | {"max_tokens": 300}))

        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: server.engine.n_open == 1)
        server.server.drain()
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        refused = client.post("/v1/completions", json=ENDLESS)
        assert refused.status_code == 503
        assert "Retry-After" in refused.headers
        asking.join(30)
        assert answers[0].json()["usage"]["completion_tokens"] == 300
        server.thread.join(20)
        assert server.status == run.DONE


def test_drain_ends_what_does_not_finish(llm_of_its_own):
    with serving(llm_of_its_own, drain_s=0.2) as server, server.client() as client:
        with client.stream("POST", "/v1/completions", json=ENDLESS | {"stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            server.server.drain()
            last = [line for line in lines if line][-1]
        assert "shutting down" in json.loads(last.removeprefix("data: "))["error"]["message"]
        server.thread.join(20)
        assert server.status == run.DONE


def test_a_failing_step_ends_everything(checkpoint, monkeypatch):
    with LLM(checkpoint, device="cpu", threads=1) as llm, serving(llm) as server:
        answers = []

        def ask(stream):
            with server.client() as client:
                answers.append(client.post("/v1/completions", json=ENDLESS | {"stream": stream}))

        asking = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for thread in asking:
            thread.start()
        wait_for(lambda: server.llm.engine.n_running == 2)

        def fail():
            raise RuntimeError("rank 1 of 2 was killed")

        monkeypatch.setattr(server.llm.engine, "step", fail)
        for thread in [*asking, server.thread]:
            thread.join(20)
        assert server.status == run.FAILED
        assert sorted(answer.status_code for answer in answers) == [200, 500]
        for answer in answers:
            body = answer.text.split("data: ")[-1]
            assert "rank 1 of 2 was killed" in json.loads(body)["error"]["message"]
    with pytest.raises(httpx.ConnectError), server.client() as client:
        client.get("/ready")


def test_address_in_use():
    with run.open_socket(ServerConfig(port=0)) as first:
        first.listen()
        with pytest.raises(OSError, match="cannot listen on"):
            run.open_socket(ServerConfig(port=first.getsockname()[1]))
    with pytest.raises(ValueError, match="host"):
        run.open_socket(ServerConfig(host="256.1.1.1.1", port=0))


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "a" * 70, "fe80::1%nothing"])
def test_a_host_that_cannot_be_is_named_and_not_the_port(host):
    with pytest.raises(ValueError, match=r"host='.*use 127\.0\.0\.1") as refused:
        run.open_socket(ServerConfig(host=host, port=0))
    assert host in str(refused.value)
    assert "--port" not in str(refused.value)
