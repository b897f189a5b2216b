"""Functions that a chat may call, and its reasoning, over HTTP; tags are special tokens."""

import json
from contextlib import closing

import httpx
import openai
import pytest
from chat_cases import END_THINK, TAGS, TOOLS
from running_server import RunningServer
from test_completions import events

from sidewinder import LLM

GIVEN = [tool.for_template() for tool in TOOLS]
ASKED = [{"role": "user", "content": "Rain?"}]
BASE = {"messages": ASKED, "tools": GIVEN, "max_tokens": 300, "temperature": 1.5, "seed": 7}


@pytest.fixture
def server(talking_server):
    return talking_server


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


def post(client, **fields):
    response = client.post("/v1/chat/completions", json=BASE | fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def refused(client, **fields):
    response = client.post("/v1/chat/completions", json=BASE | fields)
    assert response.status_code == 400, response.text
    return response.json()["error"]


def check_call(call, names=("get_weather", "now")):
    """Whether a random model's call is one of these, with arguments of the function's schema."""
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] in names
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "now":
        assert arguments == {}
        return
    assert set(arguments) <= {"city", "days", "unit"}
    assert len(arguments["city"]) <= 12
    assert arguments.get("days", 1) in range(1, 15)
    assert arguments.get("unit", "C") in ("C", "F")


@pytest.mark.parametrize("seed", range(4))
def test_required(client, seed):
    (choice,) = post(client, tool_choice="required", parallel_tool_calls=False, seed=seed)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    check_call(call)


def test_named(client):
    named = {"type": "function", "function": {"name": "now"}}
    (choice,) = post(client, tool_choice=named)
    (call,) = choice["message"]["tool_calls"]
    check_call(call, ["now"])
    assert choice["finish_reason"] == "stop"


def test_after_reasoning(client):
    """The model may think what it likes, then it has to call."""
    end = {str(END_THINK): 8.0}
    (choice,) = post(client, tool_choice="required", parallel_tool_calls=False, logit_bias=end,
                     chat_template_kwargs={"enable_thinking": True})  # fmt: skip
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"]
    assert "</think>" not in choice["message"]["reasoning_content"]
    check_call(choice["message"]["tool_calls"][0])


def test_reasoning_in_a_stream(client):
    fields = {
        "logit_bias": {str(END_THINK): 5.0},
        "max_tokens": 40,
        "ignore_eos": True,
        "seed": 3,
        "chat_template_kwargs": {"enable_thinking": True},
    }
    body = {name: value for name, value in (BASE | fields).items() if name != "tools"}
    whole = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    assert whole["reasoning_content"]
    assert whole["content"]
    deltas = [
        choice["delta"]
        for part in events(client, "/v1/chat/completions", **body)
        for choice in part["choices"]
    ]
    for name in ("reasoning_content", "content"):
        assert "".join(delta.get(name, "") for delta in deltas) == whole[name]


def test_auto_is_free_to_answer(client):
    (choice,) = post(client, max_tokens=5, ignore_eos=True)
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "length"
    assert post(client, tool_choice="auto", max_tokens=5, ignore_eos=True) == [choice]


def test_strict_functions_in_auto(client):
    """What the model begins to call it must call rightly; here it is made to begin."""
    strict = [tool | {"function": tool["function"] | {"strict": True}} for tool in GIVEN]
    bias = {str(TAGS.index("<tool_call>") + 1): 12.0}
    (choice,) = post(client, tools=strict, logit_bias=bias, parallel_tool_calls=False)
    (call,) = choice["message"]["tool_calls"]
    check_call(call)


def test_none_hides_them(client):
    hidden = {"tool_choice": "none", "max_tokens": 5, "ignore_eos": True}
    body = {name: value for name, value in (BASE | hidden).items() if name != "tools"}
    body["tool_choice"] = None
    (plain,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert post(client, **hidden) == [plain]


def test_stream_equals_whole(client):
    fields = {"tool_choice": "required", "parallel_tool_calls": False, "n": 2}
    whole = post(client, **fields)
    parts = events(client, "/v1/chat/completions", **(BASE | fields))
    for choice in whole:
        own = [c for part in parts for c in part["choices"] if c["index"] == choice["index"]]
        # In one event, or in several where the machine is busy.
        calls = [call for part in own for call in part["delta"].get("tool_calls", [])]
        assert {call["index"] for call in calls} == {0}
        arguments = "".join(call["function"]["arguments"] for call in calls)
        function = calls[0]["function"] | {"arguments": arguments}
        assert function == choice["message"]["tool_calls"][0]["function"]
        assert all(call.keys() == {"index", "function"} for call in calls[1:])
        assert "".join(part["delta"].get("content") or "" for part in own) == ""
        assert own[-1]["finish_reason"] == "tool_calls"


def test_a_conversation_goes_on(client):
    """The call and its result are in the next prompt, as the template shows them."""
    function = {"name": "get_weather", "arguments": '{"city": "Bern"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    told = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "wet"},
    ]
    reply = client.post("/tokenize", json={"messages": told, "tools": GIVEN}).json()
    text = client.post("/detokenize", json={"tokens": reply["tokens"]}).json()["prompt"]
    assert "tools: get_weather now\n" in text
    assert "user: Rain?\nassistant:  get_weather(Bern)\ntool: wet\nassistant:" in text
    assert post(client, messages=told, max_tokens=4)[0]["message"]["role"] == "assistant"


def test_a_call_that_was_cut_may_be_sent_back(client):
    function = {"name": "now", "arguments": '{"city": "Be'}
    call = {"id": "call_1", "type": "function", "function": function}
    told = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}]
    reply = client.post("/tokenize", json={"messages": told, "tools": GIVEN}).json()
    text = client.post("/detokenize", json={"tokens": reply["tokens"]}).json()["prompt"]
    assert "assistant:  now()\n" in text
    assert post(client, messages=told, max_tokens=4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [*GIVEN, GIVEN[0]]}, "there twice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "'a b'"),
        ({"tools": None, "tool_choice": "required"}, "needs tools"),
        ({"tools": [], "parallel_tool_calls": True}, "needs tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "not among tools"),
        ({"response_format": {"type": "json_object"}}, "exclude each other"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {
            "properties": "x"}}}]}, "tools.0.function: parameters: 'properties' is not an object"),
        ({"chat_template_kwargs": {"tokenize": True}}, "tokenize is set by the server"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [
            {"id": "1", "function": {"name": "f", "arguments": "{}"}}]}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [
            {"id": "1", "function": {"name": "f", "arguments": "[]"}}]}]}, "not the JSON text"),
        ({"tool_choice": "required", "tools": [{"type": "function", "function": {
            "name": "f", "parameters": {"properties": {"a": {"type": "king"}}}}}]}, "king"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused(client, fields, words):
    assert words in refused(client, **fields)["message"]


def test_models_whose_template_knows_no_tools(checkpoint):
    with LLM(checkpoint, device="cpu", threads=1, max_batch_size=2) as llm:
        own = RunningServer(llm)
        try:
            with own.client() as client:
                assert "shows no tools" in refused(client)["message"]
        finally:
            own.stop()


def test_the_openai_package(server):
    connection = httpx.Client(trust_env=False)
    with closing(
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=connection)
    ) as api:
        fields = {"model": "tiny", "messages": ASKED, "tools": GIVEN, "tool_choice": "required",
                  "parallel_tool_calls": False, "max_tokens": 300, "seed": 7}  # fmt: skip
        strict = GIVEN[0] | {"function": GIVEN[0]["function"] | {"strict": True}}
        fields["tools"] = [strict, *GIVEN[1:]]
        message = api.chat.completions.create(**fields).choices[0].message
        with api.chat.completions.stream(**fields) as stream:
            final = stream.get_final_completion().choices[0]
        assert final.finish_reason == "tool_calls"
        streamed = final.message.tool_calls[0].function
        assert streamed.name == message.tool_calls[0].function.name
        assert streamed.arguments == message.tool_calls[0].function.arguments
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "wet"}
        for said in (message, final.message):  # the streamed one has more fields
            told = [*ASKED, said.model_dump(), result]
            again = api.chat.completions.create(**fields | {"messages": told})
            assert again.usage.prompt_tokens > 0
