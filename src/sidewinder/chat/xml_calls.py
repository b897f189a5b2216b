"""Calls of functions that are written between tags; their arguments become JSON."""

import json
import re
from collections.abc import Mapping
from typing import Any

from sidewinder.chat.calls import CallPiece, CallReader
from sidewinder.chat.schema import takes_text, types_of
from sidewinder.detokenizer import overlap

MOST_OPEN = 300
"""Characters of a tag with a name (of at most 256 characters) that may still become complete. Names
have a limit because what is not complete is read again with every piece."""


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


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
