"""Whatever is wrong with a request: a clear answer in OpenAI's shape, and a server that goes on."""

import pytest

COMPLETION = {"prompt": "a", "max_tokens": 2}
CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}


def refused(response, status, *words):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"]
    return error


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nonsense": 1, "frobnicate": 2}, ["nonsense", "frobnicate"]),
        ({"temperature": -1}, ["temperature=-1", "0 or more"]),
        ({"temperature": "hot"}, ["temperature", "number"]),
        ({"top_p": 2}, ["top_p=2", "at most 1"]),
        ({"top_k": -5}, ["top_k=-5"]),
        ({"min_p": 1.5}, ["min_p=1.5"]),
        ({"seed": 2**70}, ["seed"]),
        ({"seed": 2**64 - 1, "n": 3}, ["seed=18446744073709551615 with n=3"]),
        ({"seed": 1.5}, ["seed"]),
        ({"n": 0}, ["n:"]),
        ({"n": 33}, ["at most 32"]),
        ({"max_tokens": -1}, ["max_tokens=-1"]),
        ({"max_tokens": True}, ["max_tokens"]),
        ({"min_tokens": 3}, ["min_tokens=3", "max_tokens=2"]),
        ({"stop": ["", "a"]}, ["stop"]),
        ({"stop": ["x"] * 17}, ["stop", "16"]),
        ({"stop": [1]}, ["stop.0"]),
        ({"stop_token_ids": [999]}, ["999", "vocabulary"]),
        ({"stop_token_ids": list(range(287)), "min_tokens": 1}, ["stop_token_ids", "64"]),
        ({"presence_penalty": 3}, ["presence_penalty=3"]),
        ({"repetition_penalty": 1e-300}, ["repetition_penalty", "0.01"]),
        ({"logit_bias": {"a": 1.0}}, ["logit_bias", "'a'"]),
        ({"logit_bias": {"5": 101}}, ["logit_bias[5]=101", "-100 to 100"]),
        ({"logit_bias": {"287": 1}}, ["logit_bias", "287", "vocabulary"]),
        ({"response_format": {"type": "xml"}}, ["response_format.type"]),
        ({"response_format": {"type": "json_schema"}}, ["json_schema is missing"]),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, ["exclude each other"]),
        ({"guided_regex": "(a"}, ["unclosed group"]),
        ({"guided_grammar": "start: missing"}, ["missing"]),
        ({"guided_grammar": "root ::= ("}, ["structured output"]),
        ({"guided_json": {"type": "unheard-of"}}, ["unheard-of"]),
        ({"guided_json": "{"}, ["JSON schema"]),
        ({"guided_choice": []}, ["exactly one"]),
        ({"structured_outputs": {}}, ["exactly one"]),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, ["regex, choice given"]),
        ({"structured_outputs": {"xml": "a"}}, ["structured_outputs.xml"]),
        ({"guided_regex": "a", "min_tokens": 1}, ["min_tokens=1"]),
        ({"prompt_logprobs": 0, "stream": True}, ["prompt_logprobs"]),
        ({"stream_options": {"include_usage": True}}, ["stream_options"]),
        ({"stream": True, "stream_options": {"usage": True}}, ["stream_options.usage"]),
        ({"stream": "yes"}, ["stream"]),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)]
)
def test_fields_out_of_range(client, path, body, fields, words):
    error = refused(client.post(path, json=body | fields), 400, *words)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": None}, ["prompt"]),
        ({"prompt": ""}, ["empty"]),
        ({"prompt": []}, ["prompt"]),
        ({"prompt": [[]]}, ["empty"]),
        ({"prompt": [1, "a"]}, ["mixture"]),
        ({"prompt": [[1], [1.5]]}, ["prompt"]),
        ({"prompt": [287]}, ["287", "vocabulary"]),
        ({"prompt": [-1]}, ["-1"]),
        ({"prompt": [10**30]}, ["vocabulary"]),
        ({"logprobs": 129}, ["logprobs=129"]),
        ({"best_of": 3}, ["best_of"]),
        ({"suffix": "b"}, ["suffix"]),
    ],
    ids=str,
)
def test_completions_refuse(client, fields, words):
    refused(client.post("/v1/completions", json=COMPLETION | fields), 400, *words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, ["messages"]),
        ({"messages": "hello"}, ["messages"]),
        ({"messages": [{"role": "king", "content": "a"}]}, ["messages.0.role"]),
        ({"messages": [{"role": "user"}]}, ["messages.0.content"]),
        ({"messages": [{"role": "user", "content": None}]}, ["messages.0.content"]),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, ["no other"]),
        ({"messages": [{"role": "user", "content": [1]}]}, ["no other"]),
        ({"top_logprobs": 2}, ["needs logprobs"]),
        ({"max_tokens": 0}, ["max_tokens=0"]),
        ({"functions": []}, ["functions"]),
    ],
    ids=str,
)
def test_chats_refuse(client, fields, words):
    refused(client.post("/v1/chat/completions", json=CHAT | fields), 400, *words)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "\\ud800", "max_tokens": 1}',
        b'{"prompt": "a", "\\ud800": 1}',
        b'{"prompt": "a", "stop": "\\ud800"}',
    ],
    ids=lambda content: repr(content[:40]),
)
@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_bodies_that_are_no_request(client, path, content):
    headers = {"Content-Type": "application/json"}
    refused(client.post(path, content=content, headers=headers), 400)
    assert client.post("/v1/completions", json=COMPLETION).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1e300},
        {"temperature": 1e-300},
        {"temperature": 2e-5, "top_p": 5e-324},
        {"repetition_penalty": 0.01, "frequency_penalty": -2.0, "presence_penalty": -2},
        {"repetition_penalty": 100, "min_p": 1.0, "top_k": 10**30},
        {"stop_token_ids": list(range(64)), "min_tokens": 5, "seed": -(2**63)},
        {"seed": 2**64 - 1, "n": 3},
    ],
    ids=lambda fields: str(fields)[:60],
)
def test_extreme_values_that_are_allowed(client, fields):
    body = COMPLETION | {"max_tokens": 5, "ignore_eos": True}
    response = client.post("/v1/completions", json=body | fields)
    assert response.status_code == 200 or "seed" in response.json()["error"]["message"]
    assert client.get("/ready").status_code == 200


@pytest.mark.parametrize(
    "body", [b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'"\xff"'],
    ids=["long number", "deep", "no UTF-8"],
)  # fmt: skip
def test_bodies_that_python_does_not_read(client, body):
    headers = {"Content-Type": "application/json"}
    reply = client.post("/v1/completions", content=body, headers=headers)
    assert refused(reply, 400, "cannot be read as JSON")["code"] == "invalid_json"


def test_unknown_model_path_and_method(client):
    error = refused(client.post("/v1/completions", json=COMPLETION | {"model": "gpt"}), 404, "gpt")
    assert error["code"] == "model_not_found"
    refused(client.post("/v1/chat/completions", json=CHAT | {"model": "gpt"}), 404, "tiny")
    refused(client.get("/v1/models/gpt"), 404, "gpt")
    refused(client.get("/v1/nothing"), 404)
    refused(client.get("/v1/completions"), 405)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_called_json(client, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    body = b'{"prompt": "a", "max_tokens": 1}'
    response = client.post("/v1/completions", content=body, headers=headers)
    refused(response, 400, "Content-Type: application/json")
    for kind in ("application/json; charset=utf-8", "application/vnd.api+json"):
        headers = {"Content-Type": kind}
        assert client.post("/v1/completions", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_field_that_is_null_asks_for_nothing(client, path):
    body = COMPLETION if path == "/v1/completions" else CHAT
    nothing = dict.fromkeys(
        ["tools", "tool_choice", "functions", "store", "metadata", "stop", "seed"]
    )
    assert client.post(path, json=body | nothing).status_code == 200
    unknown = {"functions": [], "a": 0}
    error = refused(client.post(path, json=body | nothing | unknown), 400, "functions, a")
    assert error["code"] == "unknown_field"


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/completions", "/v1/completions"),
        ("/v1/completion", "/v1/completions"),
        ("/healthz", "/health"),
    ],
)
def test_a_path_that_is_nearly_right_names_the_right_one(client, path, near):
    error = refused(client.post(path, json=COMPLETION), 404, path, f"did you mean {near}?")
    assert (error["type"], error["code"]) == ("not_found_error", "unknown_path")


def test_a_path_unlike_all_others_says_where_they_stand(client):
    for path in ("/" + "x" * 5000, "/v1/nothing", "/v1/embeddings"):
        error = refused(client.get(path), 404, path[:20], "/openapi.json")
        assert "did you mean" not in error["message"]
        assert len(error["message"]) < 500


def test_another_method_is_told_the_right_one(client):
    response = client.get("/v1/completions")
    error = refused(response, 405, "/v1/completions takes POST, not GET")
    assert error["code"] == "method_not_allowed"
    assert response.headers["Allow"] == "POST"


def test_large_bodies(client):
    refused(client.post("/v1/completions", json=COMPLETION | {"prompt": "a" * 100_000}), 413)
    chunks = (b" " * 10_000 for _ in range(20))  # without Content-Length
    refused(client.post("/tokenize", content=chunks), 413, "100000")
    assert client.post("/v1/completions", json=COMPLETION).status_code == 200


def test_too_many_texts(client):
    refused(client.post("/v1/completions", json=COMPLETION | {"prompt": ["a"] * 33}), 400, "33")


def test_detokenize_and_tokenize_refuse(client):
    refused(client.post("/detokenize", json={"tokens": [287]}), 400, "vocabulary")
    refused(client.post("/detokenize", json={"tokens": [-(2**70)]}), 400)
    refused(client.post("/tokenize", json={}), 400, "prompt")
    refused(client.post("/tokenize", json={"prompt": "a", "messages": CHAT["messages"]}), 400)
