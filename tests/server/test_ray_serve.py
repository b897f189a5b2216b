"""Two replicas of two ranks on Ray Serve; skipped where Ray is not installed."""

import os
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[serve]'")
# Before Ray starts; a test reports to nobody.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from openai import OpenAI
from ray import serve
from soak import tree

from sidewinder.scale_out import ray_serve
from sidewinder.server.config import ServerConfig

pytestmark = pytest.mark.slow

BODY = {"max_tokens": 3, "temperature": 0, "ignore_eos": True}
KEY = "Bearer secret"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def url(checkpoint):
    ray.init(
        num_cpus=4,
        object_store_memory=80 << 20,
        include_dashboard=False,
        configure_logging=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    config = ServerConfig(
        port=free_port(), served_model_name="tiny", api_key="secret", max_request_bytes=100_000
    )
    options = {"device": "cpu", "tp": 2, "max_batch_size": 4}
    application = ray_serve.build(str(checkpoint), config, n_replicas=2, **options)
    try:
        ray_serve.run(application, config)
        yield f"http://127.0.0.1:{config.port}"
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture
def client(url):
    headers = {"Authorization": KEY}
    with httpx.Client(base_url=url, timeout=60, trust_env=False, headers=headers) as client:
        yield client


def ask(client, prompt, **fields):
    reply = client.post("/v1/completions", json=BODY | {"prompt": prompt} | fields)
    assert reply.status_code == 200, reply.text
    cached = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return reply.headers[ray_serve.REPLICA_HEADER], cached, reply.json()["choices"]


def prefix(seed, n_tokens=600):
    return [(seed * 7919 + i * (seed + 3)) % 250 + 1 for i in range(n_tokens)]


def test_a_common_prefix_goes_to_one_replica_and_resumes(client):
    found = [ask(client, prefix(1) + [question] * 40) for question in range(1, 6)]
    assert len({replica for replica, _, _ in found}) == 1
    assert found[0][1] == 0
    assert all(cached >= 512 for _, cached, _ in found[1:])


def test_distinct_prefixes_spread_and_stay(client):
    places = {seed: ask(client, prefix(seed))[0] for seed in range(10, 26)}
    assert min(Counter(places.values()).values()) >= 2
    assert len(set(places.values())) == 2
    for seed, replica in places.items():
        again, cached, _ = ask(client, prefix(seed))
        assert again == replica
        assert cached >= 512


def test_many_at_once_use_both_replicas(client):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: ask(client, prefix(seed, 200)), range(40, 64)))
    assert min(Counter(replica for replica, _, _ in found).values()) >= 6


def test_the_openai_client_streams(url):
    client = OpenAI(base_url=url + "/v1", api_key="secret")
    parts = client.completions.create(model="tiny", prompt="def f", max_tokens=5, stream=True)
    assert sum(1 for _ in parts) >= 2
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_errors_are_those_of_one_server(client):
    assert client.post("/v1/completions", json={"prompt": "a", "oops": 1}).status_code == 400
    assert client.post("/v1/completions", content=b"x" * 200_000).status_code == 413
    assert client.get("/nowhere").status_code == 404
    assert client.get("/v1/models", headers={"Authorization": "Bearer no"}).status_code == 401
    assert client.get("/ready").json() == {"ready": True}


def test_metrics_name_their_replica(client):
    lines = client.get("/metrics").text.splitlines()
    slots = [line for line in lines if line.startswith("sidewinder_state_slots{")]
    assert len({line for line in slots if "replica=" in line}) == 2


def test_a_client_that_leaves_frees_its_slot(client):
    body = BODY | {"prompt": "def f", "max_tokens": 100_000, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as reply:
        assert next(reply.iter_lines())
    for _ in range(100):
        lines = client.get("/metrics").text.splitlines()
        running = [line for line in lines if line.startswith("sidewinder_requests_running{")]
        if all(float(line.split()[-1]) == 0 for line in running):
            return
    pytest.fail(f"still running: {running}")


def test_a_replica_that_lost_a_rank_leaves_and_is_replaced(client):
    """The last test: it takes one of the replicas away."""
    before = replicas_of(client)
    command = b"sidewinder.parallel.worker"
    ranks = [pid for pid in tree(os.getpid())
             if command in Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip
    os.kill(ranks[-1], signal.SIGKILL)
    end = time.monotonic() + 60
    while len(replicas_of(client) - before) < 1 or len(replicas_of(client)) < 2:
        status = client.post("/v1/completions", json=BODY | {"prompt": "def f"}).status_code
        assert status in (200, 500, 503)
        assert time.monotonic() < end, "no other replica came"
        time.sleep(0.1)
    assert len(replicas_of(client) & before) == 1
    found = [ask(client, prefix(seed)) for seed in range(30, 40)]
    assert len({replica for replica, _, _ in found}) == 2


def replicas_of(client):
    """Names of those that report metrics."""
    lines = client.get("/metrics").text.splitlines()
    return {line.split('"')[1] for line in lines if line.startswith("sidewinder_state_slots{")}
