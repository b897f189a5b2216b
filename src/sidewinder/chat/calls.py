"""Reads calls of functions while they are written: what is between a format's tags.

A call is announced as soon as its name is known and its arguments begin; their text follows as it
comes. So what a model gets wrong later is an argument text that is no JSON, which callers must
expect anyway, and never a long wait.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sidewinder.chat.schema import takes_text, types_of
from sidewinder.detokenizer import overlap

MOST_OPEN = 300
"""Characters of a tag with a name (of at most 256 characters) that may still become complete. Names
have a limit because what is not complete is read again with every piece."""


@dataclass(frozen=True)
class CallPiece:
    """Something new of a call.

    Attributes:
        arguments: more of their JSON text.
        name: of the function, in a call's first piece; whatever the model wrote, also where there
            is no such function.
    """

    arguments: str = ""
    name: str | None = None


class CallReader:
    """Reads from behind an opening tag to the closing one.

    Args:
        end: the closing tag.

    Attributes:
        pieces: what is new; the caller takes them away.
        begun: whether a call was announced.
        is_over: the closing tag was read, or (without any call) the text cannot be one.
        rest: text that was not understood yet; in the end what follows the closing tag.
    """

    def __init__(self, end: str) -> None:
        self._end = end
        self.pieces: list[CallPiece] = []
        self.begun = False
        self.is_over = False
        self.rest = ""
        self._state: Callable[[], None] = self._between

    def push(self, text: str) -> None:
        """Add text."""
        self.rest += text
        state = None
        while not self.is_over and state != (self._state, len(self.rest)):
            state = (self._state, len(self.rest))
            self._state()

    def _between(self) -> None:
        """Before the first call, and behind each."""
        raise NotImplementedError

    def _drop(self, n: int) -> None:
        self.rest = self.rest[n:]

    def _announce(self, name: str, arguments: str) -> None:
        self.begun = True
        self.pieces.append(CallPiece(arguments, name))

    def _at_end(self) -> bool:
        """Whether the closing tag comes next; then it is read."""
        if not self.rest.startswith(self._end):
            return False
        self._drop(len(self._end))
        self.is_over = True
        return True

    def _may_begin(self, *beginnings: str) -> bool:
        """Whether what is there may yet become one of these, or the closing tag."""
        return any(each.startswith(self.rest) for each in (*beginnings, self._end))


class JsonCalls(CallReader):
    """Objects with `name` and `arguments` (or `parameters`), one or a list of them."""

    _HEAD = re.compile(
        r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.){0,256}")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
    )

    def __init__(self, end: str) -> None:
        super().__init__(end)
        self._span = JsonSpan()

    def _between(self) -> None:
        self.rest = self.rest.lstrip(" \t\r\n,[")
        if self.rest.startswith("{"):
            self._span = JsonSpan()
            self._state = self._object
        elif not self._at_end() and not self._may_begin():
            self._give_up()

    def _object(self) -> None:
        if head := self._HEAD.match(self.rest):
            self._announce(_unquoted(head[1]), "")
            self._drop(head.end())
            self._span = JsonSpan()
            self._state = self._arguments
            return
        self._span.read(self.rest)
        if self._span.is_complete:
            self._whole(self.rest[: self._span.n_read])
        elif self._span.is_broken:
            self._give_up()

    def _whole(self, text: str) -> None:
        """An object whose name does not come first."""
        try:
            value = json.loads(text, strict=False)
            arguments = value.get("arguments", value.get("parameters", {}))
            if isinstance(arguments, dict):
                arguments = json.dumps(arguments, ensure_ascii=False)
            is_call = isinstance(value["name"], str) and isinstance(arguments, str)
        except (ValueError, KeyError, RecursionError):
            is_call = False
        if not is_call:
            self._give_up()
            return
        self._announce(value["name"], arguments)
        self._drop(len(text))
        self._state = self._between

    def _arguments(self) -> None:
        self._span.read(self.rest)
        n = self._span.n_read
        if n:
            self.pieces.append(CallPiece(self.rest[:n]))
        self._drop(n)
        self._span.n_read = 0
        if self._span.is_complete or self._span.is_broken:
            self._state = self._between

    def _give_up(self) -> None:
        """This is no call: all of it is text, unless calls came before."""
        if not self.begun:
            self.is_over = True
            return
        self._drop(1)
        self._state = self._between


class JsonSpan:
    """Finds the end of a JSON object in text that grows.

    Attributes:
        n_read: characters that were read.
        is_complete: the object ended there.
        is_broken: what follows there cannot be JSON: the beginning of a tag.
    """

    _STOPS = re.compile(r'["{}\[\]<]')
    _STRING_STOPS = re.compile(r'["\\]')

    def __init__(self) -> None:
        self.n_read = 0
        self.is_complete = self.is_broken = False
        self._depth = 0
        self._in_string = False

    def read(self, text: str) -> None:
        """Read on in `text`, from `n_read`."""
        while not self.is_complete:
            stops = self._STRING_STOPS if self._in_string else self._STOPS
            stop = stops.search(text, self.n_read)
            if stop is None:
                self.n_read = len(text)
                return
            self.n_read = stop.start()
            if stop[0] == "<":
                self.is_broken = True
                return
            if stop[0] == "\\":
                if len(text) < self.n_read + 2:
                    return
                self.n_read += 1
            self.n_read += 1
            self._take(stop[0])

    def _take(self, character: str) -> None:
        if character == '"':
            self._in_string = not self._in_string
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.is_complete = self._depth <= 0


class XmlCalls(CallReader):
    """`<function=NAME>` with a `<parameter=KEY>` for each argument; values become JSON.

    Args:
        end: the closing tag.
        schemas: JSON schema of each function's arguments: it says which values are JSON, and which
            are text.
    """

    _FUNCTION = re.compile(r"<function=([^>\n]{1,256})>")
    _PARAMETER = re.compile(r"<parameter=([^>\n]{1,256})>(?:\n|(?=[^\n]))")
    _END_FUNCTION = "</function>"
    _END_PARAMETER = "</parameter>"

    def __init__(self, end: str, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(end)
        self._schemas = schemas
        self._schema: Mapping[str, Any] = {}
        self._value_schema: Any = None
        self._n_arguments = 0

    def _between(self) -> None:
        self.rest = self.rest.lstrip()
        if function := self._FUNCTION.match(self.rest):
            self._schema = self._schemas.get(function[1], {})
            self._n_arguments = 0
            self._announce(function[1], "{")
            self._drop(function.end())
            self._state = self._inside
        elif not self._at_end() and not self._may_go_on("<function="):
            self._give_up()

    def _inside(self) -> None:
        self.rest = self.rest.lstrip()
        if self.rest.startswith(self._END_FUNCTION):
            self.pieces.append(CallPiece("}"))
            self._drop(len(self._END_FUNCTION))
            self._state = self._between
        elif parameter := self._PARAMETER.match(self.rest):
            self._begin_value(parameter[1])
            self._drop(parameter.end())
        elif self._at_end():
            self.pieces.append(CallPiece("}"))
        elif not self._may_go_on("<parameter=", self._END_FUNCTION):
            self._drop(1)

    def _begin_value(self, key: str) -> None:
        self._value_schema = (self._schema.get("properties") or {}).get(key)
        is_text = takes_text(self._value_schema, self._schema)
        streams = is_text and "null" not in types_of(self._value_schema, self._schema)
        comma = ", " if self._n_arguments else ""
        self._n_arguments += 1
        quote = '"' if streams else ""
        self.pieces.append(CallPiece(f"{comma}{json.dumps(key, ensure_ascii=False)}: {quote}"))
        self._state = self._text if streams else self._value

    def _text(self) -> None:
        text, tag, after = self.rest.partition(self._END_PARAMETER)
        if tag:
            self.pieces.append(CallPiece(_quoted(text.removesuffix("\n"))[1:]))
            self.rest = after
            self._state = self._inside
            return
        held = max(overlap(text, f"\n{self._END_PARAMETER}"), overlap(text, self._END_PARAMETER))
        if certain := text[: len(text) - held]:
            self.pieces.append(CallPiece(_quoted(certain)[1:-1]))
            self._drop(len(certain))

    def _value(self) -> None:
        text, tag, after = self.rest.partition(self._END_PARAMETER)
        if tag:
            self.pieces.append(CallPiece(self._json(text.removesuffix("\n"))))
            self.rest = after
            self._state = self._inside

    def _json(self, text: str) -> str:
        """A value that is not streamed, as JSON: text where it can be nothing else."""
        if text != "null" and takes_text(self._value_schema, self._schema):
            return _quoted(text)
        try:
            json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return _quoted(text)
        return text.strip()  # as it is: Python would make infinity of 1e999

    def _may_go_on(self, *beginnings: str) -> bool:
        """As `_may_begin`, also for a tag whose name is not complete."""
        is_open = len(self.rest) <= MOST_OPEN and not {"\n", ">"} & set(self.rest)
        unfinished = self.rest.startswith(beginnings) and (is_open or self.rest.endswith(">"))
        return unfinished or self._may_begin(*beginnings)

    def _give_up(self) -> None:
        if not self.begun:
            self.is_over = True
            return
        self._drop(1)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text, strict=False))
    except ValueError:  # an escape that JSON does not have
        return text[1:-1]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
