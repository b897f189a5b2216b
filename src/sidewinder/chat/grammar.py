"""The grammar of an answer that calls functions in one format, in llguidance's Lark."""

import json
from collections.abc import Iterable, Set
from typing import Any

from sidewinder.chat.formats import ToolFormat
from sidewinder.chat.schema import takes_text
from sidewinder.chat.tools import Tool, ToolChoice

SEPARATORS = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""JSON as models are shown it: without free blanks, which a weak model would go on writing."""

ANYTHING = "(?s:.*)"

_SHARED: tuple[str, ...] = ("$defs", "definitions")
"""Where schemas keep what they refer to."""


def call_grammar(format_: ToolFormat, choice: ToolChoice, special: Set[str]) -> str:
    """Lark text for answers that make calls: at least one where they are required, else free text
    with any number of them.

    Args:
        format_: how calls are written.
        choice: which functions, whether they must be called, and how often.
        special: texts of the tokenizer's special tokens, which grammars name without quotes.
    """
    begin, end = (_tag(tag, special) for tag in (format_.begin, format_.end))
    rules = ["%llguidance {}"]
    if choice.mode == "required":
        more = '("\\n" call)*' if choice.parallel and format_.between is None else ""
        rules += [f"start: call {more}".rstrip(), f"call: {begin} inside {end}"]
    else:
        # Text until the tag, which is found as soon as it is complete.
        opening = f"opening[lazy]: TEXT {begin}"
        if format_.begin in special:
            opening = f"opening: TEXT {begin}"
        repeat = "*" if choice.parallel else "?"
        rules += [f"start: call{repeat} tail", "tail: TEXT", f"TEXT: /{ANYTHING}/"]
        rules += [opening, f"call: opening inside {end}"]
    rules.append(_inside(format_, choice.parallel))
    names = [f"tool_{index}" for index in range(len(choice.tools))]
    rules.append(f"tool: {' | '.join(names)}")
    writer = _xml_rules if format_.body == "xml" else _json_rules
    for name, tool in zip(names, choice.tools, strict=True):
        rules += writer(name, tool)
    return "\n".join(rules) + "\n"


def _tag(text: str, special: Set[str]) -> str:
    return text if text in special else json.dumps(text)


def _inside(format_: ToolFormat, parallel: bool) -> str:
    """What is between the tags."""
    before, after = json.dumps(format_.before), json.dumps(format_.after)
    more = ""
    if parallel and format_.between is not None:
        more = f"({json.dumps(format_.between)} tool)* "
    return f"inside: {before} tool {more}{after}"


def _json_rules(name: str, tool: Tool) -> Iterable[str]:
    head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
    yield f'{name}: {head} {name}_arguments "}}"'
    yield f"{name}_arguments: {_json(_object_schema(tool.parameters))}"


def _xml_rules(name: str, tool: Tool) -> Iterable[str]:
    properties = tool.parameters.get("properties") or {}
    required = set(tool.parameters.get("required") or [])
    shared = {key: tool.parameters[key] for key in _SHARED if key in tool.parameters}
    used = []
    for index, (key, schema) in enumerate(properties.items()):
        if ">" in key or "\n" in key:
            raise ValueError(
                f"the parameter name {key!r} cannot be written between tags; rename it"
            )
        rule = f"{name}_{index}"
        used.append(rule if key in required else f"{rule}?")
        opening = json.dumps(f"<parameter={key}>\n")
        closing = json.dumps("\n</parameter>\n")
        if takes_text(schema, tool.parameters):
            yield f"{rule}: {opening} {rule}_value"
            yield f"{rule}_value[lazy]: {_text(schema)} {closing}"
        else:
            yield f"{rule}: {opening} {rule}_value {closing}"
            yield f"{rule}_value: {_json({**schema, **shared})}"
    opening = json.dumps(f"<function={tool.name}>\n")
    yield " ".join([f"{name}: {opening}", *used, json.dumps("</function>")])


def _text(schema: Any) -> str:
    """Plain text: one of a few, or of these lengths. Patterns do not hold it."""
    known = schema if isinstance(schema, dict) else {}
    enum = known["enum"] if isinstance(known.get("enum"), list) else [known.get("const")]
    texts = [json.dumps(value) for value in enum if isinstance(value, str)]
    if texts:
        return f"({' | '.join(texts)})"
    least, most = known.get("minLength", 0), known.get("maxLength", "")
    return f"/(?s:.{{{least},{most}}})/" if least or most != "" else f"/{ANYTHING}/"


def _object_schema(parameters: dict[str, Any]) -> dict[str, Any]:
    """Arguments that are named are all there are, unless the schema says otherwise."""
    closed = {"additionalProperties": False} if parameters.get("properties") else {}
    return {**closed, **parameters, "type": "object"}


def _json(schema: dict[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": SEPARATORS})
