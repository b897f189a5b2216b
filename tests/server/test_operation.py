"""What operators use: probes, metrics, models, tokens, ids, keys, logs."""

import gc
import json

import pytest
from prometheus_client.parser import text_string_to_metric_families
from running_server import serving, wait_for

from sidewinder import __version__
from sidewinder.cli import main
from sidewinder.server import run
from sidewinder.server.config import ServerConfig

BODY = {"prompt": "ab", "max_tokens": 6, "ignore_eos": True}


def samples(client):
    """Value of every sample, by name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_probes_and_version(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"ready": True}
    assert client.get("/version").json() == {"version": __version__}


def test_models(client):
    (card,) = client.get("/v1/models").json()["data"]
    assert card["id"] == "tiny"
    assert client.get("/v1/models/tiny").json() == card


def test_openapi_names_the_fields(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert {"prompt", "echo", "min_p"} <= set(schemas["CompletionRequest"]["properties"])
    assert schemas["ChatRequest"]["additionalProperties"] is False


def test_tokens_there_and_back(client):
    text = "the return, ünd ☃"
    reply = client.post("/tokenize", json={"model": "tiny", "prompt": text}).json()
    assert reply["count"] == len(reply["tokens"])
    back = client.post("/detokenize", json={"tokens": reply["tokens"]}).json()
    assert back == {"prompt": text}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_metrics_count_exactly(server, client):
    before = samples(client)
    assert client.post("/v1/completions", json=BODY | {"n": 3}).status_code == 200
    after = samples(client)

    def grown(*key):
        return after[key] - before.get(key, 0)

    assert grown("sidewinder_generated_tokens_total") == 18
    run, resumed = (grown(f"sidewinder_{kind}_tokens_total") for kind in ("prompt", "cached"))
    assert run + resumed == 3 * 2
    assert run >= 3
    assert grown("sidewinder_requests_total", ("reason", "length")) == 3
    assert grown("sidewinder_time_to_first_token_seconds_count") == 3
    assert grown("sidewinder_inter_token_seconds_count") == 15
    assert grown("sidewinder_request_seconds_count") == 3
    route = ("route", "/v1/completions")
    assert grown("sidewinder_http_responses_total", route, ("status", "200")) == 1
    assert after[("sidewinder_state_slots",)] == 4
    assert after[("sidewinder_state_slots_used",)] == 0
    assert after[("sidewinder_requests_running",)] == after[("sidewinder_requests_waiting",)] == 0
    (info,) = [dict(key[1:]) for key in after if key[0] == "sidewinder_engine_info"]
    assert info["all_reduce"] == server.llm.runner_report.collectives
    assert info["model"] == "tiny"
    for kind in ("weights", "state"):
        assert after[("sidewinder_rank_memory_bytes", ("kind", kind), ("rank", "0"))] > 0


def test_unknown_paths_share_one_label(client):
    for number in range(3):
        client.get(f"/nothing/{number}")
    routes = {dict(key[1:]).get("route") for key in samples(client)} - {None}
    assert not any("nothing" in route for route in routes)


def test_request_ids(client):
    own = client.post("/v1/completions", json=BODY, headers={"X-Request-Id": "mine-1"})
    assert own.headers["X-Request-Id"] == "mine-1"
    assert own.json()["id"] == "cmpl-mine-1"
    for bad in ("a b", "x" * 200, "a\tb"):
        reply = client.get("/health", headers={"X-Request-Id": bad})
        assert len(reply.headers["X-Request-Id"]) == 32
    assert "X-Request-Id" in client.post("/v1/completions", json={}).headers


def test_requests_are_logged_as_json(client, json_log):
    client.post("/v1/completions", json=BODY, headers={"X-Request-Id": "logged"})
    client.get("/nothing%0aforged", headers={"X-Request-Id": "forged"})
    wait_for(lambda: json_log.getvalue().count("\n") == 2)
    lines = [json.loads(line) for line in json_log.getvalue().splitlines()]
    by_id = {line["request_id"]: line for line in lines}
    logged = by_id["logged"]
    assert (logged["method"], logged["path"], logged["status"]) == ("POST", "/v1/completions", 200)
    assert logged["duration_s"] > 0
    assert by_id["forged"]["path"] == "/nothing\\nforged"


@pytest.mark.usefixtures("json_log")  # puts logging back
def test_collections_do_not_walk_over_what_is_loaded(checkpoint, monkeypatch):
    frozen = []

    async def serve_llm(*_):
        frozen.append(gc.get_freeze_count())
        return run.DONE

    monkeypatch.setattr(run, "serve_llm", serve_llm)
    try:
        assert run.serve(str(checkpoint), ServerConfig(port=0), device="cpu", threads=1) == run.DONE
        assert frozen[0] > 10_000
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(
    "options",
    [
        {"port": 70000},
        {"port": -1},
        {"max_queue": -1},
        {"max_request_bytes": 0},
        {"drain_s": float("nan")},
        {"drain_s": -1},
        {"log_format": "xml"},
        {"api_key": ""},
        {"max_choices": 0},
    ],
    ids=str,
)
def test_options_out_of_range(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        ServerConfig(**options)


def test_api_key(llm_of_its_own, capsys):
    with serving(llm_of_its_own, api_key="sésame") as server, server.client() as client:
        for path in ("/health", "/ready", "/metrics", "/version"):
            assert client.get(path).status_code == 200
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic sésame".encode()},
            {"Authorization": b"Bearer \xff\xfe"},
        ):
            for path in ("/v1/models", "/openapi.json", "/nothing"):
                refused = client.get(path, headers=headers)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
                assert refused.headers["WWW-Authenticate"] == "Bearer"
        right = {"Authorization": "Bearer sésame".encode()}
        assert client.get("/v1/models", headers=right).status_code == 200
        assert client.post("/v1/completions", json=BODY, headers=right).status_code == 200
        assert client.post("/v1/completions", json=BODY).status_code == 401
        for key in ([], ["--api-key", "wrong"]):
            assert main(["bench", "serve", "--url", server.url, *key]) == 2
            assert "needs its API key: give --api-key" in capsys.readouterr().err
