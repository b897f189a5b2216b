"""From the body of a message to the chat that asks for the same."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sidewinder.server.errors import ApiError
from sidewinder.server.messages.schemas import (
    Block,
    CountRequest,
    Message,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from sidewinder.server.schemas import Extras

NAMES = {
    r"stop": "stop_sequences",
    r"tools\.(\d+)\.function\.parameters": r"tools.\1.input_schema",
    r"tools\.(\d+)\.function": r"tools.\1",
    r"response_format": "output_config.format",
    r"reasoning_effort": "output_config.effort",
    r"parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    r"messages\.\d+\.tool_calls\.\d+\.function\.arguments": "input of a tool_use",
    r"messages\.\d+": "messages",
}
"""Of chats' fields, here."""

CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def as_chat(body: CountRequest) -> dict[str, Any]:
    """The fields of the chat with the same prompt, and for a `MessagesRequest` the same answer.

    Raises:
        ApiError: for blocks in the wrong place, or a choice without tools.
    """
    chat: dict[str, Any] = {
        "model": body.model,
        "messages": _messages(body),
        "tools": [_tool(tool.model_dump()) for tool in body.tools or []],
        "chat_template_kwargs": _options(body),
    }
    chat |= _choice(body)
    if body.output_config is not None:
        chat["reasoning_effort"] = body.output_config.effort
        if (form := body.output_config.format) is not None:
            schema = {"name": "answer", "schema": form.schema_}
            chat["response_format"] = {"type": form.type, "json_schema": schema}
    if isinstance(body, MessagesRequest):
        same = ("max_tokens", "stream", *(Extras.model_fields.keys() - chat.keys()))
        chat |= {name: getattr(body, name) for name in same}
        chat["stop"] = body.stop_sequences
    return chat


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {name: tool[name] for name in ("name", "description", "strict")}
    return {"type": "function", "function": function | {"parameters": tool["input_schema"]}}


def _options(body: CountRequest) -> dict[str, Any]:
    options = dict(body.chat_template_kwargs or {})
    if body.thinking is not None:
        options.setdefault("enable_thinking", body.thinking.type != "disabled")
    return options


def _choice(body: CountRequest) -> dict[str, Any]:
    asked = body.tool_choice
    if asked is None:
        return {}
    if asked.name is not None and asked.type != "tool":
        raise ApiError(400, "tool_choice.name: only type 'tool' takes one", "tool_choice.name")
    if not body.tools:
        if asked.type in ("any", "tool"):
            raise ApiError(400, f"tool_choice: {asked.type!r} needs tools", "tool_choice")
        return {}
    chat: dict[str, Any] = {"parallel_tool_calls": not asked.disable_parallel_tool_use}
    if asked.type != "tool":
        return chat | {"tool_choice": CHOICES[asked.type]}
    if asked.name is None:
        raise ApiError(400, "tool_choice: 'tool' needs a name", "tool_choice.name")
    return chat | {"tool_choice": {"type": "function", "function": {"name": asked.name}}}


def _messages(body: CountRequest) -> list[dict[str, Any]]:
    """As chats have them; turns of one role in a row are one."""
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": _joined(body.system)})
    for index, message in enumerate(body.messages):
        if not message.content and message.role != "assistant":
            where = f"messages.{index}.content"
            raise ApiError(400, f"{where} is empty; give a text or blocks", where)
        for number, block in enumerate(message.content):
            _check(message, block, f"messages.{index}.content.{number}")
        if message.role == "assistant":
            _add_answer(messages, message.content)
        else:
            _add_turn(messages, message)
    if not messages or messages[-1]["role"] == "assistant":
        wrong = "messages: the last one must be the user's; answers do not go on from another"
        raise ApiError(400, wrong, "messages")
    return messages


def _check(message: Message, block: Block, where: str) -> None:
    """Calls and thoughts are the assistant's, their results the user's."""
    theirs = {"thinking": "assistant", "tool_use": "assistant", "tool_result": "user"}
    role = theirs.get(block.type, message.role)
    if role != message.role:
        raise ApiError(
            400, f"{where}: {block.type} is for messages of role {role!r}, not {message.role!r}",
            where,
        )  # fmt: skip


def _add_answer(messages: list[dict[str, Any]], blocks: Sequence[Block]) -> None:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    answer = messages[-1]
    for block in blocks:
        if isinstance(block, TextBlock):
            answer["content"] += f"\n\n{block.text}" if answer["content"] else block.text
        elif isinstance(block, ThinkingBlock):
            answer["reasoning_content"] = answer.get("reasoning_content", "") + block.thinking
        elif isinstance(block, ToolUseBlock):
            answer.setdefault("tool_calls", []).append(_call(block))


def _call(block: ToolUseBlock) -> dict[str, Any]:
    function = {"name": block.name, "arguments": json.dumps(block.input)}
    return {"id": block.id, "type": "function", "function": function}


def _add_turn(messages: list[dict[str, Any]], message: Message) -> None:
    """What the user or the system says, and what tools gave, in their order."""
    for block in message.content:
        if isinstance(block, ToolResultBlock):
            content = _joined(block.content or [])
            messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": content})
        elif isinstance(block, TextBlock):
            if messages and messages[-1]["role"] == message.role:
                messages[-1]["content"] += f"\n\n{block.text}"
            else:
                messages.append({"role": message.role, "content": block.text})


def _joined(blocks: Iterable[TextBlock]) -> str:
    return "\n\n".join(block.text for block in blocks)
