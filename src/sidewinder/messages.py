"""Messages of a conversation, as OpenAI's clients have them and as chat templates read them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

EXAMPLE = '[{"role": "user", "content": "Hello"}]'


def template_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages in OpenAI's form, for a template.

    Content in text parts becomes one text; none beside `tool_calls` becomes an empty one; and the
    arguments of calls become dictionaries. All else stays as it is.

    Args:
        messages: {"role": str, "content": str}, and whatever else the template reads.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f"messages={messages!r} is not a list of messages; use {EXAMPLE}")
    return [_for_template(message) for message in messages]


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"{message!r} is not a message with role and content; use {EXAMPLE}")
    calls = message.get("tool_calls")
    content = joined_parts(message.get("content"))
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise ValueError(f"{message!r} is not a message with role and content; use {EXAMPLE}")
    found = dict(message) | {"content": content}
    if calls:
        found["tool_calls"] = [_with_arguments(call) for call in calls]
    return found


def joined_parts(content: Any) -> Any:
    """The text of content that comes in parts; other content as it is.

    Raises:
        ValueError: for a part that is not text.
    """
    if not isinstance(content, list):
        return content
    parts = [part if isinstance(part, dict) else {} for part in content]
    if any(part.get("type") != "text" or set(part) != {"type", "text"} for part in parts):
        raise ValueError('every part must be {"type": "text", "text": ...}; no other is supported')
    if not all(isinstance(part["text"], str) for part in parts):
        raise ValueError("the text of a part must be a string")
    return "".join(part["text"] for part in parts)


def call_arguments(text: str) -> dict[str, Any] | str:
    """The arguments of a call from their JSON text.

    A call that was cut has the beginning of one, which clients send back as it came: the template
    gets that text.

    Raises:
        ValueError: for JSON of something else.
    """
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    if not isinstance(arguments, dict):
        raise ValueError("function.arguments is not the JSON text of an object")
    return arguments


def _with_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    arguments = call_arguments(function["arguments"])
    return dict(call) | {"function": dict(function) | {"arguments": arguments}}
