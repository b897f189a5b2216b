"""The `openai` package, unchanged."""

from typing import Literal

import httpx
import openai
import pydantic
import pytest


@pytest.fixture
def api(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1",
        api_key="none",
        max_retries=0,
        timeout=30,
        http_client=httpx.Client(trust_env=False),
    ) as api:
        yield api


FIELDS = {"model": "tiny", "max_tokens": 8, "seed": 2, "extra_body": {"ignore_eos": True}}
MESSAGES = [{"role": "user", "content": "on"}]


def test_models(api):
    assert [model.id for model in api.models.list()] == ["tiny"]
    assert api.models.retrieve("tiny").owned_by == "sidewinder"


def test_completions(api):
    reply = api.completions.create(prompt="def", n=2, logprobs=1, **FIELDS)
    assert len(reply.choices) == 2
    assert reply.usage.completion_tokens == 16
    assert len(reply.choices[0].logprobs.tokens) == 8
    stream = api.completions.create(
        prompt="def", stream=True, stream_options={"include_usage": True}, **FIELDS
    )
    parts = list(stream)
    text = "".join(choice.text for part in parts for choice in part.choices)
    assert text == reply.choices[0].text
    assert parts[-1].usage.completion_tokens == 8


def test_chats(api):
    reply = api.chat.completions.create(
        messages=MESSAGES, n=2, logprobs=True, top_logprobs=2, stop=["\n\n\n"], **FIELDS
    )
    assert [choice.message.role for choice in reply.choices] == ["assistant"] * 2
    assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 2
    stream = api.chat.completions.create(messages=MESSAGES, stream=True, **FIELDS)
    pieces = [part.choices[0].delta.content for part in stream]
    assert "".join(pieces) == reply.choices[0].message.content


def test_errors_are_the_clients_own(api):
    with pytest.raises(openai.BadRequestError, match="top_p=2"):
        api.completions.create(prompt="a", model="tiny", top_p=2)
    with pytest.raises(openai.NotFoundError) as caught:
        api.chat.completions.create(messages=MESSAGES, model="other")
    assert caught.value.code == "model_not_found"


def test_json_schema_as_a_model(api):
    class Place(pydantic.BaseModel):
        city: Literal["Oslo", "Rome"]
        n: Literal[1, 2]

    fields = FIELDS | {"max_tokens": 100, "extra_body": {}}
    reply = api.chat.completions.parse(messages=MESSAGES, response_format=Place, **fields)
    assert reply.choices[0].finish_reason == "stop"
    assert isinstance(reply.choices[0].message.parsed, Place)


def test_logit_bias(api):
    fields = FIELDS | {"temperature": 0, "logit_bias": {"65": 100}}
    assert api.completions.create(prompt="a", **fields).choices[0].text == "aaaaaaaa"
