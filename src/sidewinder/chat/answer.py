"""Reads an answer while it is written: reasoning, text, and calls of functions apart."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sidewinder.chat.calls import CallPiece, CallReader
from sidewinder.chat.formats import END_THINK, THINK, ToolFormat
from sidewinder.chat.json_calls import JsonCalls
from sidewinder.chat.xml_calls import XmlCalls
from sidewinder.detokenizer import overlap


@dataclass(frozen=True)
class ToolCall:
    """One call of a function.

    Attributes:
        name: of the function; whatever the model wrote, also where there is no such function.
        arguments: JSON text of an object, if the model wrote it rightly, and to its end.
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
    pieces: list[CallPiece] = field(default_factory=list)

    @property
    def calls(self) -> list[ToolCall]:
        """The calls of a whole answer."""
        calls: list[ToolCall] = []
        for piece in self.pieces:
            if piece.name is not None:
                calls.append(ToolCall(piece.name, piece.arguments))
            else:
                last = calls[-1]
                calls[-1] = ToolCall(last.name, last.arguments + piece.arguments, last.id)
        return calls


class AnswerReader:
    """Reads one answer, piece by piece. A piece of text that may be the beginning of a tag stays
    back until it is decided. What looks like a call and cannot be read stays text.

    Args:
        tools: how calls are written; None: there are none to be read.
        schemas: JSON schema of each function's arguments; they say which XML values are JSON.
        reasoning: "none": think tags are text. "maybe": the answer may begin with `<think>`.
            "open": the prompt ended with it.
        most_calls: further ones are dropped.

    Attributes:
        n_calls: those that have begun.
    """

    def __init__(
        self,
        tools: ToolFormat | None = None,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        reasoning: str = "none",
        most_calls: int | None = None,
    ) -> None:
        self._tools = tools
        self._schemas = schemas or {}
        self._most_calls = most_calls
        starts = {"none": self._content, "maybe": self._beginning, "open": self._reasoning}
        self._state = starts[reasoning]
        self._rest = ""
        self._trims = reasoning == "open"
        self._calls = CallReader("")
        self._tag = self._raw = ""
        self._drops = False
        self.n_calls = 0

    def push(self, text: str, last: bool) -> Part:
        """Add text; `last` says that nothing follows. Returns what is certain now."""
        new = Part()
        for part in self.parts(text, last):
            new.reasoning += part.reasoning
            new.content += part.content
            new.pieces += part.pieces
        return new

    def parts(self, text: str, last: bool) -> list[Part]:
        """As `push`, in the order in which it was written: text behind a call is a later part."""
        self._rest += text
        parts: list[Part] = []
        state = None
        while state != self._state:
            state = self._state
            parts.append(Part())
            state(parts[-1], last)
        return parts

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
            self._begin_calls(self._tools, before[len(before.rstrip()) :] + tag, after)
            return
        held = 0 if last else _held_back(self._rest, self._tools.begin, None)
        part.content += self._rest[: len(self._rest) - held]
        self._rest = self._rest[len(self._rest) - held :]

    def _begin_calls(self, tools: ToolFormat, tag: str, rest: str) -> None:
        is_xml = tools.body == "xml"
        self._calls = XmlCalls(tools.end, self._schemas) if is_xml else JsonCalls(tools.end)
        self._tag, self._raw, self._rest = tag, "", rest
        self._state = self._in_calls

    def _in_calls(self, part: Part, last: bool) -> None:
        """Behind an opening tag, which `_tag` has with the blanks before it."""
        calls = self._calls
        if not calls.begun:
            self._raw += self._rest
        calls.push(self._rest)
        self._rest = ""
        self._take(part, calls)
        if not calls.begun and (calls.is_over or last):
            # It was no call: the tag is text, and what follows is read again as such.
            part.content += self._tag
            self._rest, self._trims = self._raw, False
            self._state = self._content
        elif calls.is_over:
            self._rest, self._trims = calls.rest, True
            self._state = self._content

    def _take(self, part: Part, calls: CallReader) -> None:
        for piece in calls.pieces:
            if piece.name is not None:
                self._drops = self.n_calls == self._most_calls
                self.n_calls += not self._drops
            if not self._drops:
                part.pieces.append(piece)
        calls.pieces = []


def _held_back(text: str, tag: str, blanks: str | None) -> int:
    """How many characters at the end of `text` may still turn out to belong to `tag`, or to be
    blanks before it (`blanks` as `str.rstrip` takes them)."""
    undecided = text[: len(text) - overlap(text, tag)]
    return len(text) - len(undecided.rstrip(blanks))
