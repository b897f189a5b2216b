"""Clients that vanish, queues that fill, ranks that fail, and the end of the process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from running_server import serving, wait_for

from sidewinder import LLM
from sidewinder.server import run
from sidewinder.server.config import ServerConfig

ENDLESS = {"prompt": "ab", "max_tokens": 10**6, "ignore_eos": True}


def open_request(server, **fields):
    """Send a request by hand and return the socket, its answer unread."""
    body = json.dumps(ENDLESS | fields).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", httpx.URL(server.url).port), timeout=10)
    connection.sendall(head.encode() + body)
    return connection


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


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 2])
def test_process_drains_on_sigterm(checkpoint, tp):
    """With two ranks, one of them is killed instead: the process says so and exits with 1."""
    program = "import sys; from sidewinder.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", str(checkpoint)]
    options = ["--port", "0", "--tp", str(tp), "--device", "cpu", "--log-format", "json"]
    options += ["--state-cache-bytes", "100"]  # which is warned of
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            url, lines = listening_url(process)
            fields = ENDLESS | {"max_tokens": 200, "stream": True}
            with (
                httpx.Client(trust_env=False, timeout=60) as client,
                client.stream("POST", f"{url}/v1/completions", json=fields) as response,
            ):
                parts = response.iter_lines()
                next(parts)
                if tp == 1:
                    process.terminate()
                else:
                    os.kill(worker_of(process.pid), signal.SIGKILL)
                last = [part for part in parts if part][-1]
            assert process.wait(60) == (0 if tp == 1 else 1)
            assert ("[DONE]" in last) == (tp == 1)
            lines += process.stderr.read().splitlines()
            assert all(isinstance(json.loads(line), dict) for line in lines)
            assert ("stopped" in lines[-1]) or tp == 2
        finally:
            process.kill()


@pytest.mark.slow
def test_a_rank_that_is_stopped_while_nothing_runs_is_found(checkpoint):
    program = "import sys; from sidewinder.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", str(checkpoint), "--port", "0", "--tp", "2"]
    options = ["--device", "cpu", "--log-format", "json", "--timeout-s", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            listening_url(process)
            os.kill(worker_of(process.pid), signal.SIGSTOP)
            assert process.wait(30) == 1
            last = json.loads(process.stderr.read().splitlines()[-1])
            assert "has given no sign of life for 3 s" in last["message"]
        finally:
            process.kill()


@pytest.mark.slow
def test_a_killed_rank_ends_all_clients(checkpoint):
    """Under load, running and waiting, streamed and whole: all learn of it in seconds."""
    program = "import sys; from sidewinder.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", str(checkpoint), "--port", "0", "--tp", "2"]
    options = ["--device", "cpu", "--log-format", "json", "--max-batch-size", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            url, _ = listening_url(process)
            heard = []

            def ask(number):
                body = ENDLESS | {"stream": number % 2 == 0}
                with httpx.Client(trust_env=False, timeout=60) as client:
                    try:
                        heard.append(client.post(f"{url}/v1/completions", json=body).text)
                    except httpx.TransportError as error:
                        heard.append(error)

            asking = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
            for thread in asking:
                thread.start()
            with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
                lines = ["sidewinder_requests_running 4.0", "sidewinder_requests_waiting 6.0"]
                wait_for(lambda: set(lines) <= set(client.get("/metrics").text.splitlines()))
            os.kill(worker_of(process.pid), signal.SIGKILL)
            for thread in asking:
                thread.join(20)
            assert process.wait(30) == 1
            assert len(heard) == 10
            assert all("SIGKILL" in str(text).split("data: ")[-1] for text in heard)
        finally:
            process.kill()


def listening_url(process):
    """Where the process listens, from its log, and the lines until then."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "listening on " in line:
            return json.loads(line)["message"].removeprefix("listening on "), lines
    raise AssertionError(f"it did not start: {lines}")


def worker_of(pid):
    """One of the ranks' processes."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = file.read().split()
        if children:
            return int(children[-1])
    raise AssertionError("no rank found")
