"""Anthropic's Messages: text, tools and thoughts in blocks, whole and in events."""

import json

import pytest
from chat_cases import WEATHER, call_text
from running_server import NAME, open_request, serving, wait_for

from sidewinder import LLM
from sidewinder.server import stream

TOOL = {
    "name": "get_weather",
    "description": WEATHER.description,
    "input_schema": WEATHER.parameters,
}
USER = {"role": "user", "content": "Rain?"}
BODY = {"model": NAME, "max_tokens": 12, "messages": [USER]}


@pytest.fixture
def client(talking_server):
    with talking_server.client() as client:
        yield client


def post(client, path="", **fields):
    body = {name: value for name, value in (BODY | fields).items() if value is not ...}
    return client.post(f"/v1/messages{path}", json=body)


def message(client, **fields):
    reply = post(client, **fields)
    assert reply.status_code == 200, reply.text
    assert reply.headers["request-id"] == reply.json()["id"].removeprefix("msg_")
    return reply.json()


def error(reply, status=400):
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert body["type"] == "error"
    return body["error"]


def events(client, **fields):
    reply = post(client, stream=True, **fields)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in reply.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def put_together(found):
    """The message that events tell of, and the kinds of the events."""
    message, arguments = None, {}
    for event in found:
        kind, index = event["type"], event.get("index")
        if kind == "message_start":
            message = event["message"]
            assert message["content"] == []
        elif kind == "content_block_start":
            assert index == len(message["content"])
            message["content"].append(event["content_block"])
        elif kind == "content_block_delta":
            delta = dict(event["delta"])
            added = delta.pop("type")
            if added == "input_json_delta":
                arguments[index] = arguments.get(index, "") + delta["partial_json"]
            else:
                (name,) = delta
                message["content"][index][name] += delta[name]
        elif kind == "content_block_stop":
            if index in arguments:
                message["content"][index]["input"] = json.loads(arguments[index])
        elif kind == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    return message


def writes(monkeypatch, text):
    """Let the model's answers be `text`, as far as their reader is concerned."""
    from sidewinder.server.answers import Answer

    read = Answer.read
    shown = {}

    def answer(self, _new, last):
        n_shown = shown.get(self, 0)
        n_next = len(text) if last else min(len(text), n_shown + 3)
        shown[self] = n_next
        return read(self, text[n_shown:n_next], last)

    monkeypatch.setattr(Answer, "read", answer)


def prompt_of(client, monkeypatch, **fields):
    """What the model is given."""
    from sidewinder.chat import Dialect

    seen, prompt = [], Dialect.prompt

    def remember(self, conversation):
        seen.append(prompt(self, conversation))
        return seen[-1]

    monkeypatch.setattr(Dialect, "prompt", remember)
    reply = post(client, max_tokens=1, **fields)
    assert reply.status_code == 200, reply.text
    return seen[0]


def test_a_text(client):
    told = message(client, temperature=0)
    assert told["id"].startswith("msg_")
    assert (told["type"], told["role"], told["model"]) == ("message", "assistant", NAME)
    (block,) = told["content"]
    assert block["type"] == "text"
    assert block["text"]
    assert (told["stop_reason"], told["stop_sequence"]) == ("max_tokens", None)
    assert told["usage"]["output_tokens"] == 12
    chat = {"model": NAME, "max_tokens": 12, "messages": [USER], "temperature": 0}
    answer = client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]
    assert answer["content"] == block["text"]


def test_usage_counts_what_was_cached_apart(client):
    long = [{"role": "user", "content": "the def " * 60}]
    fields = {"messages": long, "ignore_eos": True}
    first, second = (message(client, **fields)["usage"] for _ in range(2))
    n_prompt = post(client, "/count_tokens", messages=long, max_tokens=...).json()["input_tokens"]
    for usage in (first, second):
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == n_prompt
        assert usage["cache_creation_input_tokens"] == 0
    assert first["cache_read_input_tokens"] == 0
    assert second["cache_read_input_tokens"] > 0
    found = events(client, **fields)
    assert found[0]["message"]["usage"]["input_tokens"] == n_prompt
    assert found[-2]["usage"] == second


def test_events(client):
    found = events(client, temperature=0)
    kinds = [event["type"] for event in found]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    told, whole = put_together(found), message(client, temperature=0)
    for name in ("content", "stop_reason", "stop_sequence"):
        assert told[name] == whole[name]
    assert told["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence(client, stream):
    text = message(client, temperature=0, max_tokens=40)["content"][0]["text"]
    stop = text[10:13]
    fields = {"temperature": 0, "max_tokens": 40, "stop_sequences": ["\x00no", stop]}
    told = put_together(events(client, **fields)) if stream else message(client, **fields)
    assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", stop)
    assert told["content"][0]["text"] == text[: text.index(stop)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_that_ends(client, stream):
    fields = {"max_tokens": 500, "output_config": {"format": {"type": "json_schema", "schema":
              {"enum": ["Bern", "Basel"]}}}}  # fmt: skip
    told = put_together(events(client, **fields)) if stream else message(client, **fields)
    assert told["content"][0]["text"] in ('"Bern"', '"Basel"')
    assert (told["stop_reason"], told["stop_sequence"]) == ("end_turn", None)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_must_be_called(client, stream):
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        fields = {"tools": [TOOL], "tool_choice": choice, "max_tokens": 300}
        told = put_together(events(client, **fields)) if stream else message(client, **fields)
        call = told["content"][0]
        assert call["type"] == "tool_use"
        assert call["id"].startswith("toolu_")
        assert call["name"] == "get_weather"
        assert isinstance(call["input"]["city"], str)
        assert told["stop_reason"] == "tool_use"


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_text_and_calls(client, monkeypatch, stream):
    writes(monkeypatch, f"Well.</think>Look: {call_text('hermes')}{call_text('hermes')}")
    fields = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "tools": [TOOL]}
    fields |= {"max_tokens": 60}
    told = put_together(events(client, **fields)) if stream else message(client, **fields)
    thought, text, *calls = told["content"]
    assert thought == {"type": "thinking", "thinking": "Well.", "signature": ""}
    assert text == {"type": "text", "text": "Look:"}
    for call in calls:
        assert call["input"] == {"city": "Bern", "days": 3}
    assert len({call["id"] for call in calls}) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_text_between_calls_stays_there(client, monkeypatch, stream):
    call = call_text("hermes")
    writes(monkeypatch, f"One: {call} Two: {call} So.")
    fields = {"tools": [TOOL], "max_tokens": 60}
    told = put_together(events(client, **fields)) if stream else message(client, **fields)
    content = [block.get("text", block["type"]) for block in told["content"]]
    assert content == ["One:", "tool_use", "Two:", "tool_use", "So."]


@pytest.mark.parametrize("arguments", ['{"a', '{"a": NaN}', '{"a": -1e999}'])
def test_calls_that_are_no_json(client, monkeypatch, arguments):
    end = "}\n</tool_call>" if arguments != '{"a' else ""
    writes(monkeypatch, '<tool_call>\n{"name": "now", "arguments": ' + arguments + end)
    call = message(client, tools=[TOOL])["content"][0]
    assert call["input"] == {"INVALID_JSON": arguments}


def test_one_call_where_more_are_disabled(client, monkeypatch):
    writes(monkeypatch, call_text("hermes") * 2)
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(message(client, tools=[TOOL], tool_choice=choice)["content"]) == 1


def test_thinking_sets_the_templates_variable(client, monkeypatch):
    assert prompt_of(client, monkeypatch).endswith("<think></think>")
    for kind in ("enabled", "adaptive", "disabled"):
        text = prompt_of(client, monkeypatch, thinking={"type": kind, "budget_tokens": 1024})
        assert text.endswith("<think>\n"), kind  # The template asks whether it is there at all.


def test_a_conversation(client, monkeypatch):
    text = prompt_of(
        client,
        monkeypatch,
        system=[{"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "brief."}],
        messages=[
            {"role": "user", "content": "Rain?"},
            {"role": "user", "content": [{"type": "text", "text": "In Bern."}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Bern"}},
                {"type": "tool_use", "id": "t2", "name": "get_weather", "input": {"city": "Biel"}},
            ]},
            {"role": "assistant", "content": "There."},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "wet"},
                {"type": "tool_result", "tool_use_id": "t2", "is_error": True,
                 "content": [{"type": "text", "text": "dry"}]},
                {"type": "text", "text": "So?"},
            ]},
        ],
        tools=[TOOL],
    )  # fmt: skip
    head = "tools: get_weather\nAnswer with <tool_call> and </tool_call>.\n"
    assert text.removeprefix(head) == (
        "system: Be\n\nbrief.\nuser: Rain?\n\nIn Bern.\n"
        "assistant: I look.\n\nThere. get_weather(Bern) get_weather(Biel)\n"
        "tool: wet\ntool: dry\nuser: So?\nassistant:<think></think>"
    )


def test_what_was_answered_may_be_sent_back(client, monkeypatch):
    writes(monkeypatch, f"Well.</think>Look: {call_text('hermes')}")
    thinking = {"type": "enabled", "budget_tokens": 1024}
    told = message(client, tools=[TOOL], thinking=thinking)
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "wet"}
        for block in told["content"] if block["type"] == "tool_use"
    ]  # fmt: skip
    turns = [USER, {"role": "assistant", "content": told["content"]}]
    turns += [{"role": "user", "content": results}]
    text = prompt_of(client, monkeypatch, messages=turns, tools=[TOOL])
    assert "assistant: Look: get_weather(Bern)\ntool: wet\n" in text


def test_tokens_are_counted(client):
    def count(**fields):
        reply = post(client, "/count_tokens", max_tokens=..., **fields)
        assert reply.status_code == 200, reply.text
        return reply.json()["input_tokens"]

    usage = message(client)["usage"]
    assert count() == usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert count(tools=[TOOL]) > count(system="Be brief.") > count()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": ...}, "max_tokens: Field required"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content is empty"),
        ({"messages": [USER, {"role": "assistant", "content": "It"}, USER | {"content": []}]},
         "messages.2.content is empty"),
        ({"messages": [USER, {"role": "assistant", "content": "It"}]}, "must be the user's"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
         "messages.0.content: a block of type 'image' is not supported"),
        ({"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "document"}]}]}]},
         "'document'"),
        ({"messages": [{"role": "user", "content": [
            {"type": "tool_use", "id": "t", "name": "n", "input": {}}]}]},
         "messages.0.content.0: tool_use is for messages of role 'assistant'"),
        ({"messages": [{"role": "assistant", "content": [
            {"type": "tool_result", "tool_use_id": "t"}]}, USER]}, "role 'user'"),
        ({"system": [{"type": "thinking", "thinking": "a"}]}, "system: a block of type 'thinking'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 1}]},
         "tools.0: 'web_search_20250305' is not supported"),
        ({"tools": [TOOL, TOOL]}, "tools.1.name: 'get_weather' is there twice"),
        ({"tools": [TOOL | {"name": "a b"}]}, "tools.0: the function name 'a b'"),
        ({"tools": [TOOL | {"input_schema": {"properties": 3}}]}, "tools.0: parameters"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: 'any' needs tools"),
        ({"tool_choice": {"type": "tool"}, "tools": [TOOL]}, "needs a name"),
        ({"tool_choice": {"type": "auto", "name": "get_weather"}, "tools": [TOOL]},
         "tool_choice.name: only type 'tool'"),
        ({"tool_choice": {"type": "tool", "name": "x"}, "tools": [TOOL]}, "'x' is not among tools"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"temperature": -1.0}, "temperature"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"container": "c", "context_management": {}}, "container, context_management"),
        ({"thinking": {"type": "enabled", "display": "omitted"}}, "thinking.display"),
        ({"service_tier": "batch"}, "service_tier"),
        ({"repetition_penalty": 1000.0}, "repetition_penalty"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "x"}}}}, "'x'|x"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_by_name(client, fields, said):
    told = error(post(client, **fields))
    assert told["type"] == "invalid_request_error"
    assert any(part in told["message"] for part in said.split("|")), told


def test_other_errors_have_anthropics_form(client):
    assert error(post(client, model="other"), 404)["type"] == "not_found_error"
    assert error(client.post("/v1/messages/no"), 404)["type"] == "not_found_error"
    assert error(client.get("/v1/messages"), 405)["type"] == "invalid_request_error"
    assert error(client.post("/v1/messages", content=b"{"))["type"] == "invalid_request_error"


def test_a_stream_that_breaks(talker):
    with (
        LLM(talker, device="cpu", threads=1, max_batch_size=1) as llm,
        serving(llm, max_queue=0, max_request_bytes=3000) as server,
        server.client() as client,
    ):
        big = error(post(client, system="x" * 4000), 413)
        assert big["type"] == "request_too_large"
        body = BODY | {"max_tokens": 10**6, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/messages", json=body) as reply:
            lines = reply.iter_lines()
            for line in lines:
                if line.startswith("event: content_block_delta"):
                    break
            full = post(client)
            assert error(full, 429)["type"] == "rate_limit_error"
            assert "Retry-After" in full.headers
            server.engine._loop.call_soon_threadsafe(server.engine.fail_open, "broken")
            rest = [line for line in lines if line.startswith("event: ")]
            assert rest[-1] == "event: error"


def test_silence_has_pings(talker, monkeypatch):
    monkeypatch.setattr(stream, "SILENCE_S", 0.05)
    with (
        LLM(talker, device="cpu", threads=1, max_batch_size=1) as llm,
        serving(llm) as server,
        server.client() as client,
        open_request(server),
    ):
        wait_for(lambda: llm.engine.n_running == 1)
        with client.stream("POST", "/v1/messages", json=BODY | {"stream": True}) as reply:
            lines = (line for line in reply.iter_lines() if line)
            for _ in range(2):  # message_start, and the ping that always comes
                assert next(lines).startswith("event: ")
                assert next(lines).startswith("data: ")
            assert next(lines) == "event: ping"
            assert next(lines) == 'data: {"type":"ping"}'


@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
def test_the_key(talker, header):
    with (
        LLM(talker, device="cpu", threads=1, max_batch_size=1) as llm,
        serving(llm, api_key="secret") as server,
    ):
        prefix = "" if header == "x-api-key" else "Bearer "
        with server.client(headers={header: f"{prefix}secret"}) as client:
            message(client)
        with server.client(headers={header: f"{prefix}wrong"}) as client:
            assert error(post(client), 401)["type"] == "authentication_error"
        with server.client(headers={header: "secret" if prefix else "Bearer secret"}) as client:
            assert error(post(client), 401)["type"] == "authentication_error"


def test_a_text_ends_where_the_model_does(talker):
    """Clients ask for tens of thousands of tokens, whatever the server has."""
    with (
        LLM(talker, device="cpu", threads=1, max_batch_size=1, max_model_len=100) as llm,
        serving(llm) as server,
        server.client() as client,
    ):
        fields = {"max_tokens": 32_000, "ignore_eos": True}
        told = message(client, **fields)
        assert told["stop_reason"] == "model_context_window_exceeded"
        assert told["usage"]["input_tokens"] + told["usage"]["output_tokens"] == 100
        assert message(client, max_tokens=5)["stop_reason"] == "max_tokens"
        long = [{"role": "user", "content": "the def " * 100}]
        assert "max_model_len=100" in error(post(client, messages=long))["message"]
