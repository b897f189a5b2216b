"""A server that speculates: the same replies, and what it says of drafts."""

import pytest
from running_server import RunningServer
from test_completions import events
from test_operation import samples

from sidewinder import LLM

BODY = {"prompt": "def f", "max_tokens": 40, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def speculating(checkpoint):
    """Client of a server that speculates."""
    options = {"device": "cpu", "threads": 1, "dtype": "float32", "state_cache_bytes": 0}
    with LLM(checkpoint, speculate=6, **options) as llm:
        server = RunningServer(llm)
        with server.client() as client:
            yield client
        server.stop()


def ask(client, **fields):
    reply = client.post("/v1/completions", json=BODY | fields)
    assert reply.status_code == 200, reply.text
    reply = reply.json()
    return reply["choices"][0], reply["usage"]


def test_predictions_save_steps_and_change_nothing(speculating):
    plain, usage = ask(speculating, seed=1, temperature=1.0)
    assert usage["completion_tokens"] == 40
    before = samples(speculating)
    known = {"type": "content", "content": plain["text"]}
    found, usage = ask(speculating, seed=1, temperature=1.0, prediction=known)
    assert found == plain
    after = samples(speculating)

    def grown(name):
        return after[(f"sidewinder_{name}_total",)] - before[(f"sidewinder_{name}_total",)]

    details = usage["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == grown("accepted_tokens") > 5
    assert details["rejected_prediction_tokens"] + grown("accepted_tokens") == grown("draft_tokens")
    assert grown("steps") == 40 - details["accepted_prediction_tokens"]
    assert grown("generated_tokens") == 40


def test_streams_have_every_token_and_its_logprob(speculating):
    whole, _ = ask(speculating, logprobs=1)
    known = {"type": "content", "content": whole["text"]}
    streamed = BODY | {"logprobs": 1, "prediction": known}
    parts = [part["choices"][0] for part in events(speculating, **streamed)]
    assert len(parts) < 30, "several tokens come in one event"
    assert "".join(part["text"] for part in parts) == whole["text"]
    for name in ("tokens", "token_logprobs", "text_offset"):
        told = [each for part in parts for each in part["logprobs"][name]]
        assert told == whole["logprobs"][name]


def test_a_stop_string_ends_the_text_where_it_would(speculating):
    whole, _ = ask(speculating)
    stop = whole["text"][len(whole["text"]) // 2 :][:3]
    known = {"type": "content", "content": whole["text"]}
    found, usage = ask(speculating, stop=stop, prediction=known)
    assert found["text"] == whole["text"][: whole["text"].index(stop)]
    assert found["finish_reason"] == "stop"
    assert usage["completion_tokens"] < 40


@pytest.mark.parametrize("prediction", [{"type": "content"}, {"type": "file", "content": "a"}, "a"])
def test_predictions_that_are_none(speculating, prediction):
    reply = speculating.post("/v1/completions", json=BODY | {"prediction": prediction})
    assert reply.status_code == 400
    assert "prediction" in reply.json()["error"]["message"]


def test_a_server_that_does_not_speculate_takes_predictions(client):
    plain, _ = ask(client)
    found, usage = ask(client, prediction={"type": "content", "content": plain["text"]})
    assert found == plain
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] == 0
