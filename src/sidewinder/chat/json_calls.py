"""Calls of functions that are written as JSON."""

import json
import re

from sidewinder.chat.calls import CallPiece, CallReader


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


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text, strict=False))
    except ValueError:  # an escape that JSON does not have
        return text[1:-1]
