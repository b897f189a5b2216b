"""An answer in sections while it grows: thoughts, text and calls, and the events that tell of it.

Responses and messages both say an answer so; each has its own words for it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

from sidewinder.chat import Part

Kind = Literal["reasoning", "text", "call"]

News = tuple[str, dict[str, Any]]
"""An event's type, and what it holds beside that."""


class Sections(ABC):
    """The sections of one answer.

    Attributes:
        output: as the reply has them; the last one grows until it is closed.
        kind: of the one that grows; None: none does.
    """

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self.kind: Kind | None = None

    def add(self, part: Part) -> Iterator[News]:
        """Take in what is new in the answer."""
        if part.reasoning:
            yield from self._text("reasoning", part.reasoning)
        if part.content:
            yield from self._text("text", part.content)
        for piece in part.pieces:
            if piece.name is not None:
                yield from self.close()
                yield from self.open("call", piece.name)
            if piece.arguments:
                yield from self._grown(piece.arguments)

    def end(self, status: str) -> Iterator[News]:
        """The answer is over: "completed" or "incomplete"."""
        yield from self.close(status)

    def open(self, kind: Kind, name: str = "") -> Iterator[News]:
        """Begin a section; `name` is of a call."""
        self.output.append(self._new(kind, name))
        self.kind = kind
        yield from self._opened()

    def close(self, status: str = "completed") -> Iterator[News]:
        """End the section that grows, if one does."""
        if self.kind is not None:
            yield from self._closed(status)
            self.kind = None

    def _text(self, kind: Kind, text: str) -> Iterator[News]:
        if self.kind != kind:
            yield from self.close()
            yield from self.open(kind)
        yield from self._grown(text)

    @abstractmethod
    def _new(self, kind: Kind, name: str) -> dict[str, Any]:
        """A section without content."""

    @abstractmethod
    def _opened(self) -> Iterator[News]:
        """Events for the last section, which is new."""

    @abstractmethod
    def _grown(self, text: str) -> Iterator[News]:
        """Add to the last section (arguments, if it is a call), and its events."""

    @abstractmethod
    def _closed(self, status: str) -> Iterator[News]:
        """Complete the last section, and its events."""
