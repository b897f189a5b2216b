"""Reads calls of functions while they are written: what is between a format's tags.

A call is announced as soon as its name is known and its arguments begin; their text follows as it
comes. So what a model gets wrong later is an argument text that is no JSON, which callers must
expect anyway, and never a long wait.
"""

from collections.abc import Callable
from dataclasses import dataclass


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
