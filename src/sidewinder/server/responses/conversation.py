"""From the body of a response to the chat that asks for the same."""

from typing import Any

from sidewinder.server.responses.schemas import (
    CallItem,
    Item,
    MessageItem,
    NamedChoice,
    OutputItem,
    ReasoningItem,
    ResponseRequest,
    SchemaFormat,
    TextPart,
)
from sidewinder.server.schemas import Extras

SAME_NAME = ("model", "parallel_tool_calls", "stream", "user", "stop", *Extras.model_fields)
"""Fields that chats have, too."""

NAMES = {
    r"max_(completion_)?tokens": "max_output_tokens",
    r"tools\.(\d+)\.function": r"tools.\1",
    r"response_format": "text.format",
    r"reasoning_effort": "reasoning.effort",
    r"messages\.\d+\.tool_calls\.\d+\.function\.arguments": "arguments of a function_call",
    r"messages(\.\d+)?": "input",
}
"""Of chats' fields, here."""


def as_chat(body: ResponseRequest) -> dict[str, Any]:
    """The fields of the chat with the same answer."""
    chat: dict[str, Any] = {name: getattr(body, name) for name in SAME_NAME}
    chat["messages"] = _messages(body)
    chat["max_completion_tokens"] = body.max_output_tokens
    chat["tools"] = [_tool(tool.model_dump(exclude_none=True)) for tool in body.tools or []]
    choice = body.tool_choice
    if isinstance(choice, NamedChoice):
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        chat["tool_choice"] = choice if body.tools or choice != "auto" else None
    if not body.tools:
        chat["parallel_tool_calls"] = None  # clients send it always
    chat["reasoning_effort"] = body.reasoning.effort if body.reasoning is not None else None
    chat["response_format"] = _form(body)
    return chat


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    kind = tool.pop("type")
    return {"type": kind, "function": tool}


def _form(body: ResponseRequest) -> dict[str, Any] | None:
    form = body.text.format if body.text is not None else None
    if form is None:
        return None
    if isinstance(form, SchemaFormat):
        schema = {"name": form.name, "schema": form.schema_, "strict": form.strict}
        return {"type": form.type, "json_schema": schema}
    return {"type": form.type}


def _messages(body: ResponseRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for item in body.input:
        _add(messages, item)
    # Thoughts that no answer followed: what was cut short, or left out by the client.
    return [each for each in messages if each.keys() != {"role", "reasoning_content"}]


def _add(messages: list[dict[str, Any]], item: Item) -> None:
    """Add an item; what the assistant thought, said and called in a row is one message."""
    if isinstance(item, OutputItem):
        content = _text(item.output)
        messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
    elif isinstance(item, CallItem):
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        _assistant(messages, "tool_calls").setdefault("tool_calls", []).append(call)
    elif isinstance(item, ReasoningItem):
        thought = "".join(part.text for part in item.content or [])
        if thought:
            last = _assistant(messages, "reasoning_content")
            last["reasoning_content"] = last.get("reasoning_content", "") + thought
    elif item.role == "assistant":
        _assistant(messages, "content")["content"] = _text(item.content)
    else:
        _add_message(messages, item)


def _assistant(messages: list[dict[str, Any]], adds: str) -> dict[str, Any]:
    """The assistant's message that goes on with `adds`, or a new one."""
    last = messages[-1] if messages else {}
    goes_on = last.get("role") == "assistant" and (
        adds == "tool_calls" or not last.keys() & {"content", "tool_calls"}
    )
    if not goes_on:
        messages.append({"role": "assistant"})
    return messages[-1]


def _add_message(messages: list[dict[str, Any]], item: MessageItem) -> None:
    text = _text(item.content)
    is_system = item.role in ("system", "developer")
    if is_system and messages and messages[-1]["role"] == "system":
        # Behind `instructions`; many templates take one system message.
        messages[-1]["content"] += f"\n\n{text}"
        return
    messages.append({"role": item.role, "content": text})


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
