"""Messages of a conversation, as OpenAI's clients have them and as chat templates read them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

EXAMPLE = '[{"role": "user", "content": "Hello"}]'


def template_messages(
    messages: Sequence[Mapping[str, Any]], knows_developers: bool = False
) -> list[dict[str, Any]]:
    """Messages in OpenAI's form, its client's objects too, for a template.

    Content in text parts becomes one text; none beside `tool_calls` becomes an empty one; the
    arguments of calls become dictionaries; `reasoning` becomes `reasoning_content`; and what is
    None is left out. All else stays as it is.

    Args:
        messages: {"role": str, "content": str}, and whatever else the template reads.
        knows_developers: the template has OpenAI's newer name for system messages; else they get
            the old one.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f"messages={messages!r} is not a list of messages; use {EXAMPLE}")
    shown = []
    for number, message in enumerate(messages):
        try:
            shown.append(_for_template(message))
        except ValueError as error:
            raise ValueError(f"messages.{number}: {error}") from error
        if shown[-1]["role"] == "developer" and not knows_developers:
            shown[-1]["role"] = "system"
    return shown


def _for_template(given: Any) -> dict[str, Any]:
    dumps = getattr(given, "model_dump", None)
    message = dumps() if callable(dumps) else given
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"{given!r} is not a message with role and content; use {EXAMPLE}")
    found = {name: value for name, value in message.items() if value is not None}
    content = joined_parts(found.get("content", "" if found.get("tool_calls") else None))
    if not isinstance(content, str):
        raise ValueError(f"{given!r} is not a message with role and content; use {EXAMPLE}")
    found["content"] = content
    if "reasoning" in found:
        found.setdefault("reasoning_content", found.pop("reasoning"))
    if "tool_calls" in found:
        found["tool_calls"] = _with_arguments(found["tool_calls"])
    return found


def joined_parts(content: Any) -> Any:
    """The text of content that comes in parts; other content as it is.

    Raises:
        ValueError: for a part that is not text. `cache_control`, other servers' hint, means nothing
            here.
    """
    if not isinstance(content, list | tuple):
        return content
    parts = [part if isinstance(part, Mapping) else {} for part in content]
    known = {"type", "text", "cache_control"}
    if any(part.get("type") != "text" or not known.issuperset(part) for part in parts):
        raise ValueError('every part must be {"type": "text", "text": ...}; no other is supported')
    if not all(isinstance(part.get("text"), str) for part in parts):
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


def _with_arguments(calls: Any) -> list[Any]:
    if not isinstance(calls, list | tuple):
        raise ValueError(f"tool_calls={calls!r} is not a list of calls")
    found = []
    for number, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
            try:
                arguments = call_arguments(function["arguments"])
            except ValueError as error:
                raise ValueError(f"tool_calls.{number}.{error}") from error
            call = {**call, "function": {**function, "arguments": arguments}}
        found.append(call)
    return found
