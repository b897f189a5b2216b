"""Reads an answer while it is written: reasoning, text, and calls of functions apart."""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sidewinder.chat.formats import END_THINK, THINK, ToolFormat
from sidewinder.chat.schema import takes_text, types_of
from sidewinder.detokenizer import overlap


@dataclass(frozen=True)
class ToolCall:
    """One call of a function.

    Attributes:
        name: of the function; whatever the model wrote, also where there is no such function.
        arguments: JSON text of an object.
        id: names the call in this conversation.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}", compare=False)


@dataclass
class Part:
    """What is new in an answer: of each kind, in the order in which kinds can follow each other."""

    reasoning: str = ""
    content: str = ""
    calls: list[ToolCall] = field(default_factory=list)


class AnswerReader:
    """Reads one answer, piece by piece. A piece of text that may be the beginning of a tag stays
    back until it is decided; a call is reported when it is complete. What looks like a call and
    cannot be read stays text.

    Args:
        tools: how calls are written; None: there are none to be read.
        schemas: JSON schema of each function's arguments; they say which XML values are JSON.
        reasoning: "none": think tags are text. "maybe": the answer may begin with `<think>`.
            "open": the prompt ended with it.
        most_calls: further ones are dropped.
    """

    def __init__(
        self,
        tools: ToolFormat | None = None,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        reasoning: str = "none",
        most_calls: int | None = None,
    ) -> None:
        self._tools = tools
        self._most_calls = most_calls
        self._schemas = schemas or {}
        starts = {"none": self._content, "maybe": self._beginning, "open": self._reasoning}
        self._state = starts[reasoning]
        self._rest = ""
        self._trims = reasoning == "open"
        self.n_calls = 0

    def push(self, text: str, last: bool) -> Part:
        """Add text; `last` says that nothing follows. Returns what is certain now."""
        self._rest += text
        part = Part()
        state = None
        while state != self._state:
            state = self._state
            state(part, last)
        return part

    # Each state takes what it can from `_rest`, and sets the next state if another one follows.

    def _beginning(self, _part: Part, last: bool) -> None:
        """Before the first character that is no blank."""
        text = self._rest.lstrip()
        if text.startswith(THINK):
            self._rest, self._trims = text[len(THINK) :], True
            self._state = self._reasoning
        elif last or not THINK.startswith(text):
            self._state = self._content

    def _reasoning(self, part: Part, last: bool) -> None:
        if self._trims:
            self._rest = self._rest.lstrip("\n")
            self._trims = not self._rest
        before, tag, after = self._rest.partition(END_THINK)
        if tag:
            part.reasoning += before.rstrip("\n")
            self._rest, self._trims = after, True
            self._state = self._content
            return
        held = 0 if last else _held_back(self._rest, END_THINK, "\n")
        part.reasoning += self._rest[: len(self._rest) - held]
        self._rest = self._rest[len(self._rest) - held :]

    def _content(self, part: Part, last: bool) -> None:
        if self._trims:
            # Blank lines after reasoning or a call are not the answer's.
            self._rest = self._rest.lstrip()
            self._trims = not self._rest
        if self._tools is None:
            part.content += self._rest
            self._rest = ""
            return
        before, tag, after = self._rest.partition(self._tools.begin)
        if tag:
            part.content += before.rstrip()
            self._rest = after
            self._state = self._call
            return
        held = 0 if last else _held_back(self._rest, self._tools.begin, None)
        part.content += self._rest[: len(self._rest) - held]
        self._rest = self._rest[len(self._rest) - held :]

    def _call(self, part: Part, last: bool) -> None:
        """Behind an opening tag. The closing one may also be part of an argument."""
        assert self._tools is not None
        end = self._rest.find(self._tools.end)
        while end >= 0:
            calls = self._calls(self._rest[:end])
            if calls:
                self._take(part, calls, self._rest[end + len(self._tools.end) :])
                return
            end = self._rest.find(self._tools.end, end + 1)
        if not last:
            return
        # A model may end its answer without the closing tag.
        if calls := self._calls(self._rest):
            self._take(part, calls, "")
            return
        part.content += self._tools.begin + self._rest
        self._rest = ""

    def _take(self, part: Part, calls: list[ToolCall], rest: str) -> None:
        if self._most_calls is not None:
            calls = calls[: self._most_calls - self.n_calls]
        part.calls += calls
        self.n_calls += len(calls)
        self._rest, self._trims = rest, True
        self._state = self._content

    def _calls(self, body: str) -> list[ToolCall]:
        """The calls that `body` holds; none if it cannot be read."""
        assert self._tools is not None
        if self._tools.body == "xml":
            return _xml_calls(body, self._schemas)
        try:
            value = json.loads(body, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return []
        values = value if isinstance(value, list) else [value]
        calls = [_json_call(each) for each in values]
        return [call for call in calls if call is not None] if all(calls) else []


def _held_back(text: str, tag: str, blanks: str | None) -> int:
    """How many characters at the end of `text` may still turn out to belong to `tag`, or to be
    blanks before it (`blanks` as `str.rstrip` takes them)."""
    undecided = text[: len(text) - overlap(text, tag)]
    return len(text) - len(undecided.rstrip(blanks))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _json_call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)


def _xml_calls(body: str, schemas: Mapping[str, Mapping[str, Any]]) -> list[ToolCall]:
    found = _FUNCTION.fullmatch(body)
    if found is None:
        return []
    name, inside = found.groups()
    schema = schemas.get(name, {})
    properties = schema.get("properties", {})
    arguments: dict[str, Any] = {}
    position = 0
    while position < len(inside):
        parameter = _PARAMETER.match(inside, position)
        if parameter is None:
            if inside[position:].strip():
                return []
            break
        key, text = parameter.groups()
        arguments[key] = _xml_value(text, properties.get(key), schema)
        position = parameter.end()
    return [ToolCall(name, json.dumps(arguments, ensure_ascii=False))]


def _xml_value(text: str, schema: Any, root: Any) -> Any:
    """Text where the schema allows a text, or says nothing; else JSON, if it is any."""
    is_null = text == "null" and "null" in types_of(schema, root)
    if takes_text(schema, root) and not is_null:
        return text
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text
