"""The state cache over HTTP: usage, salts, metrics."""

import pytest
from test_completions import events
from test_operation import samples

PROMPT = [(7 * i) % 211 + 3 for i in range(200)]  # no other test of this server asks it
BODY = {"max_tokens": 3, "temperature": 0, "ignore_eos": True}


def ask(client, prompt, **fields):
    reply = client.post("/v1/completions", json=BODY | {"prompt": prompt} | fields)
    assert reply.status_code == 200, reply.text
    return reply.json()


def cached(reply):
    return reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_second_request_resumes(client):
    before = samples(client)
    first = ask(client, PROMPT)
    second = ask(client, PROMPT)
    assert cached(first) == 0
    assert cached(second) > 100
    assert second["choices"] == first["choices"]
    after = samples(client)

    def grown(name, *labels):
        return after[(name, *labels)] - before[(name, *labels)]

    assert grown("sidewinder_prefix_queries_total") == 2
    assert grown("sidewinder_prefix_query_tokens_total") == 400
    assert grown("sidewinder_cached_tokens_total") == cached(second)
    assert grown("sidewinder_prompt_tokens_total") == 400 - cached(second)
    assert grown("sidewinder_prefix_hits_total", ("tier", "device")) == 1
    assert after[("sidewinder_snapshots", ("tier", "device"))] > 0
    used, most = (
        after[(f"sidewinder_snapshot_{name}", ("tier", "device"))]
        for name in ("bytes", "limit_bytes")
    )
    assert 0 < used <= most


def test_salts_share_nothing(client):
    prompt = PROMPT[::-1]
    assert cached(ask(client, prompt, cache_salt="a")) == 0
    assert cached(ask(client, prompt, cache_salt="b")) == 0
    assert cached(ask(client, prompt)) == 0
    assert cached(ask(client, prompt, cache_salt="a")) > 100


@pytest.mark.parametrize("salt", ["", 5, "x" * 300])
def test_salts_that_are_none(client, salt):
    reply = client.post("/v1/completions", json=BODY | {"prompt": "a", "cache_salt": salt})
    assert reply.status_code == 400
    assert "cache_salt" in reply.json()["error"]["message"]


def test_choices_of_a_prompt_count_its_tokens_once(client):
    prompt = PROMPT[50:] + PROMPT[:50]
    ask(client, prompt)
    reply = ask(client, prompt, n=3, temperature=1.0)
    assert reply["usage"]["prompt_tokens"] == 200
    assert 100 < cached(reply) < 200


def test_streams_report_it_too(client):
    options = {"stream_options": {"include_usage": True}}
    ask(client, PROMPT)
    parts = events(client, **BODY, prompt=PROMPT, **options)
    assert cached(parts[-1]) > 100


def test_echo_and_scores_run_everything(client):
    ask(client, PROMPT)
    reply = ask(client, PROMPT, echo=True, logprobs=0)
    assert len(reply["choices"][0]["logprobs"]["tokens"]) == 203
    assert cached(reply) == 0
