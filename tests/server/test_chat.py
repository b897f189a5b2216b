"""POST /v1/chat/completions."""

import pytest
from test_completions import events

MESSAGES = [{"role": "system", "content": "be"}, {"role": "user", "content": "on?"}]
BASE = {"model": "tiny", "messages": MESSAGES, "seed": 3, "ignore_eos": True, "max_tokens": 10}


def post(client, **fields):
    response = client.post("/v1/chat/completions", json=BASE | fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_reply_has_openai_shape(client):
    reply = post(client)
    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    (choice,) = reply["choices"]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 10


def test_the_chat_template_makes_the_prompt(client):
    text = "system: be\nuser: on?\nassistant:"
    fields = {name: BASE[name] for name in ("seed", "ignore_eos", "max_tokens")}
    plain = client.post("/v1/completions", json=fields | {"prompt": text}).json()
    assert post(client)["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
    tokens = client.post("/tokenize", json={"messages": MESSAGES}).json()["tokens"]
    assert tokens == client.post("/tokenize", json={"prompt": text}).json()["tokens"]


def test_content_in_parts(client):
    parts = [{"type": "text", "text": "o"}, {"type": "text", "text": "n?"}]
    messages = [MESSAGES[0], {"role": "user", "content": parts}]
    assert post(client, messages=messages)["choices"] == post(client)["choices"]


@pytest.mark.parametrize("n", [1, 2])
def test_stream_equals_whole(client, n):
    fields = {"n": n, "logprobs": True, "top_logprobs": 2}
    whole = post(client, **fields)
    options = {"stream_options": {"include_usage": True}}
    parts = events(client, "/v1/chat/completions", **BASE, **fields, **options)
    assert parts[-1]["usage"] == whole["usage"]
    opening = parts[0]["choices"]
    assert [choice["delta"] for choice in opening] == [{"role": "assistant", "content": ""}] * n
    for choice in whole["choices"]:
        own = [c for part in parts for c in part["choices"] if c["index"] == choice["index"]]
        assert "".join(part["delta"]["content"] for part in own) == choice["message"]["content"]
        joined = [entry for part in own[1:] for entry in part["logprobs"]["content"]]
        assert joined == choice["logprobs"]["content"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]


def test_logprobs(client):
    content = post(client, logprobs=True, top_logprobs=3)["choices"][0]["logprobs"]["content"]
    assert len(content) == 10
    for entry in content:
        assert len(entry["top_logprobs"]) == 3
        assert entry["bytes"] is None or bytes(entry["bytes"]).decode() == entry["token"]
    assert post(client, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_max_completion_tokens_wins(client):
    assert post(client, max_completion_tokens=3)["usage"]["completion_tokens"] == 3


def test_without_a_length_the_servers_default_holds(server):
    with server.client() as client:
        fields = {name: value for name, value in BASE.items() if name != "max_tokens"}
        reply = client.post("/v1/chat/completions", json=fields).json()
    assert reply["usage"]["completion_tokens"] == server.config.default_max_tokens
