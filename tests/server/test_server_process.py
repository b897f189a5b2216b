"""`sidewinder serve` as a process: signals, ranks that die or stop, and how it ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from running_server import ENDLESS, wait_for

pytestmark = pytest.mark.slow

PROGRAM = "import sys; from sidewinder.cli import main; sys.exit(main())"


@contextlib.contextmanager
def serve(checkpoint, tp, *options):
    """The process, where it listens, and the lines that it logged until then."""
    command = [sys.executable, "-c", PROGRAM, "serve", str(checkpoint), "--tp", str(tp)]
    command += ["--port", "0", "--device", "cpu", "--log-format", "json", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process, *listening_url(process)
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


@pytest.mark.parametrize("tp", [1, 2])
def test_process_drains_on_sigterm(checkpoint, tp):
    """With two ranks, one of them is killed instead: the process says so and exits with 1."""
    too_small = ("--state-cache-bytes", "100")  # which is warned of
    with serve(checkpoint, tp, *too_small) as (process, url, lines):
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


def test_a_rank_that_is_stopped_while_nothing_runs_is_found(checkpoint):
    with serve(checkpoint, 2, "--timeout-s", "3") as (process, _, _):
        os.kill(worker_of(process.pid), signal.SIGSTOP)
        assert process.wait(30) == 1
        last = json.loads(process.stderr.read().splitlines()[-1])
        assert "has given no sign of life for 3 s" in last["message"]


def test_a_killed_rank_ends_all_clients(checkpoint):
    """Under load, running and waiting, streamed and whole: all learn of it in seconds."""
    with serve(checkpoint, 2, "--max-batch-size", "4") as (process, url, _):
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
