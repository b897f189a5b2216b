"""Random requests, a short soak, slow clients, and two servers side by side."""

import os
import socket
import threading
import time

import fuzz_server
import httpx
import pytest
import soak
from running_server import open_request, serving, wait_for

from sidewinder import LLM


def test_random_requests_are_answered_in_shape(client):
    result = fuzz_server.fuzz(client, 250, seed=7)
    assert result["problems"] == []
    assert set(result["statuses"]) >= {"200", "400", "404"}
    assert fuzz_server.settle(client)


def test_the_fuzzer_sees_what_is_wrong():
    asked = httpx.Request("POST", "http://x/v1/completions")
    assert fuzz_server.problem(httpx.Response(500, request=asked)) == "status 500"
    assert "shape" in fuzz_server.problem(httpx.Response(400, json={"detail": 1}, request=asked))
    fine = {"error": {"message": "", "type": "", "param": None, "code": None}}
    assert fuzz_server.problem(httpx.Response(400, json=fine, request=asked)) is None


def test_a_short_soak(server, client):
    run = soak.Soak(server.url, seed=1)
    samples = run.run(3.0, workers=3, pid=None)
    assert run.failures == []
    assert samples == []
    assert sum(run.done.values()) > 20
    assert fuzz_server.settle(client)


def test_memory_of_a_process_tree_is_counted():
    own = os.getpid()
    assert own in soak.tree(own)
    assert soak.resident_bytes(own) > 1 << 20


def test_growth_is_fitted_with_its_error():
    samples = [{"at_s": 10.0 * i, "bytes": 500 + 20.0 * i} for i in range(6)]
    assert soak.slope(samples) == pytest.approx((2, 0), abs=1e-9)
    samples[4]["bytes"] += 6
    rate, error = soak.slope(samples)
    assert 0 < error < 1
    assert 0 < rate - 2 < 2 * error


def test_a_client_that_does_not_read_holds_up_nobody(server, client):
    """Its answer waits in buffers; others are served, and its slot is free once it leaves."""
    lazy = open_request(server, max_tokens=20_000, stream=True, logprobs=5)
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    wait_for(lambda: server.engine.n_open == 1)
    body = {"prompt": "the", "max_tokens": 20, "ignore_eos": True}
    for _ in range(5):
        started = time.monotonic()
        assert client.post("/v1/completions", json=body).status_code == 200
        assert time.monotonic() - started < 20
    lazy.close()
    wait_for(lambda: server.engine.n_open == 0)


def test_a_client_that_sends_slowly_holds_up_nobody(server, client):
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert client.get("/ready").status_code == 200
        body = {"prompt": "the", "max_tokens": 2}
        assert client.post("/v1/completions", json=body).status_code == 200
        assert server.engine.n_open == 0


@pytest.mark.slow
def test_two_servers_side_by_side(checkpoint, llm_of_its_own):
    """Both with two ranks or one, at the same time: no port, segment or file is shared."""
    body = {"prompt": "def f", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    with (
        LLM(checkpoint, device="cpu", tp=2, threads=1) as other,
        serving(other) as two_ranks,
        serving(llm_of_its_own) as one_rank,
    ):
        texts = []

        def ask(server):
            with server.client() as client:
                for _ in range(5):
                    reply = client.post("/v1/completions", json=body)
                    texts.append(reply.json()["choices"][0]["text"])

        asking = [threading.Thread(target=ask, args=(each,)) for each in (two_ranks, one_rank) * 2]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(60)
    assert len(texts) == 20
    assert len(set(texts)) == 1
