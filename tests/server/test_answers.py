"""Messages of a chat's choice: deltas, put together as clients do, are the whole message."""

import pytest
from chat_cases import call_text

from sidewinder.chat import FORMATS, AnswerReader
from sidewinder.server.answers import Answer

TEXT = f"<think>Why?</think>So.\n{call_text('hermes')}\n{call_text('hermes')}"
BERN = {"name": "get_weather", "arguments": '{"city": "Bern", "days": 3}'}


def answer(is_named=False):
    return Answer(AnswerReader(FORMATS["hermes"], reasoning="maybe"), is_named)


@pytest.mark.parametrize("size", [1, 5, 40, 1000])
def test_deltas_of_several_calls(size):
    own, texts, calls = answer(), {"content": "", "reasoning_content": ""}, []
    for start in range(0, len(TEXT), size):
        delta = own.delta(TEXT[start : start + size], start + size >= len(TEXT))
        for entry in delta.pop("tool_calls", []):
            if "id" in entry:
                assert entry["index"] == len(calls)
                calls.append(entry["function"])
            else:
                assert entry["index"] == len(calls) - 1
                calls[-1]["arguments"] += entry["function"]["arguments"]
        for name, text in delta.items():
            texts[name] += text
    assert calls == [BERN, BERN]
    message = answer().message(TEXT, True)
    assert texts == {name: message[name] for name in texts}
    assert [call["function"] for call in message["tool_calls"]] == calls
    assert own.finish_reason("stop") == "tool_calls"
    assert own.finish_reason("length") == "length"
    assert own.finish_reason(None) is None


def test_a_call_of_the_named_function_ends_with_stop():
    own = answer(is_named=True)
    own.message(TEXT, True)
    assert own.finish_reason("stop") == "stop"
