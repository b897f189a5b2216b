"""`response_format`, `structured_outputs`, `guided_*` and `logit_bias` over HTTP."""

import json
import re

import pytest

from sidewinder.server.schemas import MAX_FORM

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "n": {"type": "integer", "maximum": 9}},
    "required": ["city", "n"],
    "additionalProperties": False,
}
FIELDS = {"max_tokens": 200, "seed": 3, "temperature": 1.0}
CHAT = FIELDS | {"messages": [{"role": "user", "content": "on?"}]}
COMPLETION = FIELDS | {"prompt": "on"}


def text_of(client, path, body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "stop"
    return choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)]
)
@pytest.mark.parametrize(
    "fields",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "place", "strict": True, "schema": SCHEMA},
            }
        },
        {"structured_outputs": {"json": SCHEMA}},
        {"guided_json": json.dumps(SCHEMA), "response_format": {"type": "text"}},
    ],
    ids=["response_format", "structured_outputs", "guided"],
)
def test_json_schema(client, path, body, fields):
    value = json.loads(text_of(client, path, body | fields))
    assert set(value) == {"city", "n"}
    assert value["city"] in ("Oslo", "Rome")


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": "[0-9]{3}"}, "[0-9]{3}"),
        ({"guided_choice": ["yes", "no"], "ignore_eos": True}, "yes|no"),
        ({"guided_grammar": 'root ::= "a" [b-d] "e"'}, "a[bcd]e"),
        ({"structured_outputs": {"grammar": 'start: "x"? "y"'}}, "x?y"),
    ],
    ids=str,
)
def test_other_forms(client, fields, pattern):
    assert re.fullmatch(pattern, text_of(client, "/v1/completions", COMPLETION | fields))


def test_choices_and_streams_keep_their_form(client):
    body = COMPLETION | {"n": 3, "guided_regex": "(ab|cd){2}", "stream": True}
    texts = ["", "", ""]
    with client.stream("POST", "/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    texts[choice["index"]] += choice["text"]
    assert all(re.fullmatch("(ab|cd){2}", text) for text in texts)


@pytest.mark.parametrize("kind", ["regex", "grammar"])
def test_the_longest_form(client, kind):
    """Others wait while it compiles."""
    start = 'start: "a" // ' if kind == "grammar" else ""
    text = start + "a" * (MAX_FORM - len(start))
    for fields in ({f"guided_{kind}": text}, {"structured_outputs": {kind: text}}):
        body = COMPLETION | fields | {"max_tokens": 1}
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == "a"
    for fields in ({f"guided_{kind}": text + "a"}, {"structured_outputs": {kind: text + "a"}}):
        response = client.post("/v1/completions", json=COMPLETION | fields)
        assert response.status_code == 400
        assert f"at most {MAX_FORM} characters" in response.json()["error"]["message"]


def test_logit_bias(client):
    (token,) = client.post("/tokenize", json={"prompt": "q"}).json()["tokens"]
    body = COMPLETION | {"max_tokens": 4, "temperature": 0, "logit_bias": {str(token): 100}}
    reply = client.post("/v1/completions", json=body).json()
    assert reply["choices"][0]["text"] == "qqqq"
