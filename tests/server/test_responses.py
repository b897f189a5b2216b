"""POST /v1/responses: items, events, and the `openai` package."""

import json
from contextlib import closing

import httpx
import openai
import pydantic
import pytest
from chat_cases import END_THINK, TOOLS

from sidewinder.server.conversation import conversation
from sidewinder.server.responses.conversation import as_chat
from sidewinder.server.responses.schemas import ResponseRequest
from sidewinder.server.schemas import ChatRequest

GIVEN = [{"type": "function", **tool.for_template()["function"]} for tool in TOOLS]
BASE = {"input": "Rain?", "max_output_tokens": 12, "temperature": 1.5, "seed": 7}
CALLS = {
    "tools": GIVEN,
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_output_tokens": 300,
}
THINKS = {"chat_template_kwargs": {"enable_thinking": True}, "logit_bias": {str(END_THINK): 4.0}}


@pytest.fixture
def server(talking_server):
    return talking_server


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture
def api(server):
    connection = httpx.Client(trust_env=False)
    with closing(
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=connection)
    ) as api:
        yield api


def post(client, **fields):
    response = client.post("/v1/responses", json=BASE | fields)
    assert response.status_code == 200, response.text
    return response.json()


def events(client, **fields):
    """(type, fields) of every event of a stream."""
    with client.stream("POST", "/v1/responses", json=BASE | fields | {"stream": True}) as response:
        assert response.status_code == 200
        blocks = response.read().decode().strip().split("\n\n")
    found = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        found.append(event)
    return found


def test_a_text(client):
    reply = post(client, ignore_eos=True, metadata={"a": "b"})
    assert reply["object"] == "response"
    assert reply["id"].startswith("resp_")
    assert reply["status"] == "incomplete"
    assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply["metadata"] == {"a": "b"}
    assert reply["store"] is False
    (item,) = reply["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "incomplete")
    chat = {"messages": [{"role": "user", "content": "Rain?"}], "max_tokens": 12,
            "temperature": 1.5, "seed": 7, "ignore_eos": True}  # fmt: skip
    same = client.post("/v1/chat/completions", json=chat).json()
    assert item["content"][0]["text"] == same["choices"][0]["message"]["content"]
    assert reply["usage"]["input_tokens"] == same["usage"]["prompt_tokens"]
    assert reply["usage"]["output_tokens"] == 12


def test_what_clients_always_send(client):
    plain = post(client)
    sent = post(client, tools=[], tool_choice="auto", parallel_tool_calls=True)
    assert without_ids(sent["output"]) == without_ids(plain["output"])
    ended = post(client, text={"format": {"type": "json_object"}}, max_output_tokens=500)
    assert (ended["status"], ended["incomplete_details"]) == ("completed", None)


def without_ids(items):
    names = ("id", "call_id", "item_id")
    return [{key: value for key, value in item.items() if key not in names} for item in items]


@pytest.mark.parametrize(
    "fields",
    [{"ignore_eos": True}, {}, THINKS | {"ignore_eos": True, "max_output_tokens": 60}, CALLS,
     CALLS | THINKS, {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 100}],
    ids=["text", "its end", "reasoning", "call", "reasoning and call", "json"],
)  # fmt: skip
def test_a_stream_says_the_same(client, fields):
    whole = post(client, **fields)
    stream = events(client, **fields)
    kinds = [event["type"] for event in stream]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == f"response.{whole['status']}"
    for event in stream[:2]:
        assert event["response"]["status"] == "in_progress"
        assert event["response"]["output"] == []
    final = stream[-1]["response"]
    assert without_ids(final["output"]) == without_ids(whole["output"])
    assert final["usage"] | {"input_tokens_details": 0} == whole["usage"] | {
        "input_tokens_details": 0
    }
    done = [event["item"] for event in stream if event["type"] == "response.output_item.done"]
    assert done == final["output"]
    for index, item in enumerate(final["output"]):
        own = [event for event in stream if event.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added"
        assert own[0]["item"]["id"] == item["id"]
        told = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        assert told == (
            item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        )
    if "chat_template_kwargs" in fields:
        assert final["output"][0]["type"] == "reasoning"
        assert final["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


def test_the_openai_package(api):
    fields = {"model": "tiny", "input": "Rain?", "max_output_tokens": 300, "temperature": 1.5}
    extra = {"extra_body": {"seed": 7} | THINKS}
    reply = api.responses.create(
        tools=GIVEN, tool_choice="required", parallel_tool_calls=False, **fields, **extra
    )
    assert [item.type for item in reply.output] == ["reasoning", "function_call"]
    call = reply.output[-1]
    with api.responses.stream(
        tools=GIVEN, tool_choice="required", parallel_tool_calls=False, **fields, **extra
    ) as stream:
        final = stream.get_final_response()
    assert final.output[-1].arguments == call.arguments
    history = [
        {"role": "user", "content": "Rain?"},
        *[item.model_dump(exclude_none=True) for item in reply.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "wet"},
    ]
    again = api.responses.create(model="tiny", input=history, instructions="Be.", tools=GIVEN)
    assert again.usage.input_tokens > reply.usage.input_tokens
    assert isinstance(again.output_text, str)


class Answer(pydantic.BaseModel):
    yes: bool


def test_a_schema_from_the_openai_package(api):
    reply = api.responses.parse(model="tiny", input="Rain?", text_format=Answer, temperature=1)
    assert isinstance(reply.output_parsed, Answer)


def prompt_of(client, monkeypatch, **fields):
    """The text that a request's items become."""
    from sidewinder.tokenizer import Tokenizer

    seen = []
    encode = Tokenizer.encode

    def recorded(self, text, special=True):
        seen.append(text)
        return encode(self, text, special)

    monkeypatch.setattr(Tokenizer, "encode", recorded)
    post(client, **{"max_output_tokens": 1} | fields)
    return seen[0]


def test_items_become_messages(client, monkeypatch):
    call = {"type": "function_call", "call_id": "1", "name": "get_weather", "id": "fc_1"}
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "And short."}]},
        {"type": "message", "role": "user", "content": "Rain?"},
        {"type": "reasoning", "id": "rs_1", "summary": [],
         "content": [{"type": "reasoning_text", "text": "Hm."}]},
        call | {"arguments": '{"city": "Bern"}'},
        call | {"call_id": "2", "arguments": '{"city": "Thun"}', "status": "completed"},
        {"type": "function_call_output", "call_id": "1", "output": "wet"},
        {"type": "function_call_output", "call_id": "2",
         "output": [{"type": "input_text", "text": "dry"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "Wet.", "annotations": []}]},
        {"role": "user", "content": "Sure?"},
    ]  # fmt: skip
    text = prompt_of(client, monkeypatch, input=items, instructions="Be kind.", tools=GIVEN)
    _, _, told = text.partition("</tool_call>.\n")
    assert told == (
        "system: Be kind.\n\nAnd short.\nuser: Rain?\n"
        "assistant:  get_weather(Bern) get_weather(Thun)\ntool: wet\ntool: dry\n"
        "assistant: Wet.\nuser: Sure?\nassistant:<think></think>"
    )


def test_thoughts_without_an_answer(client, monkeypatch):
    """What was cut short is left out, and thoughts in a row belong together."""
    thought = {"type": "reasoning", "summary": [],
               "content": [{"type": "reasoning_text", "text": "Hm."}]}  # fmt: skip
    items = [
        {"role": "user", "content": "Rain?"},
        thought,
        {"role": "user", "content": "Well?"},
        thought,
        thought,
        {"role": "assistant", "content": "Wet."},
    ]
    text = prompt_of(client, monkeypatch, input=items)
    assert text == "user: Rain?\nuser: Well?\nassistant: Wet.\nassistant:<think></think>"
    told = ChatRequest(**as_chat(ResponseRequest(input=items))).messages
    assert told[-1].reasoning_content == "Hm.Hm."


def test_effort_is_a_variable_of_the_template():
    asked = ChatRequest(**as_chat(ResponseRequest(input="a", reasoning={"effort": "low"})))
    assert conversation(asked).template_options == {"reasoning_effort": "low"}
    own = {"reasoning_effort": "high"}
    asked = ResponseRequest(input="a", reasoning={"effort": "low"}, chat_template_kwargs=own)
    assert conversation(ChatRequest(**as_chat(asked))).template_options == own


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "image"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tool_choice": "required"}, "needs tools"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens=0"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "x"}}}}, "x"),
        ({"stop": ["a"] * 17}, "stop"),
        (
            {"tools": [{"type": "function", "name": "a b"}]},
            "tools.0: the function name 'a b' is not supported",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "n", "arguments": "1"}]},
            "arguments of a function_call is not the JSON text",
        ),
        ({"top_p": 3}, "top_p=3"),
        ({"repetition_penalty": 1000}, "repetition_penalty"),
        ({"model": 3}, "model"),
    ],
    ids=str,
)
def test_what_is_refused(client, fields, words):
    response = client.post("/v1/responses", json=BASE | fields)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"]


def test_an_engine_that_fails(client):
    """The stream ends with an event that says so."""
    from sidewinder.engine.async_engine import EngineClosed

    async def broken(_):
        raise EngineClosed("rank 1 died")
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidewinder.engine.async_engine.RequestStream.__aiter__", broken)
        stream = events(client)
    assert stream[-1]["type"] == "response.failed"
    assert "rank 1 died" in stream[-1]["response"]["error"]["message"]
