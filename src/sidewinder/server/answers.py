"""The message of a chat's choice: text, reasoning, and calls of functions."""

from collections.abc import Sequence
from typing import Any

from sidewinder.chat import AnswerReader, CallPiece, Part, ToolCall
from sidewinder.engine.request import FinishReason


class Answer:
    """An answer while it grows.

    Args:
        reader: takes it apart; None: all of it is text.
        is_named: the request named the function to call.
    """

    def __init__(self, reader: AnswerReader | None = None, is_named: bool = False) -> None:
        self._reader = reader
        self._is_named = is_named

    def read(self, text: str, last: bool) -> list[Part]:
        """What `text` adds to the answer, in its order."""
        return [Part(content=text)] if self._reader is None else self._reader.parts(text, last)

    def message(self, text: str, last: bool) -> dict[str, Any]:
        """The whole message; `text` is all of the answer."""
        if self._reader is None:
            return {"role": "assistant", "content": text}
        part = self._reader.push(text, last)
        message: dict[str, Any] = {"role": "assistant", "content": part.content}
        if part.reasoning:
            message["reasoning_content"] = part.reasoning
        if part.pieces:
            message["content"] = part.content or None
            message["tool_calls"] = [_call(call) for call in part.calls]
        return message

    def delta(self, text: str, last: bool) -> dict[str, Any]:
        """What `text` adds to the message; {} if that is not certain yet."""
        if self._reader is None:
            return {"content": text}
        n_calls = self._reader.n_calls
        part = self._reader.push(text, last)
        delta: dict[str, Any] = {}
        if part.reasoning:
            delta["reasoning_content"] = part.reasoning
        if part.content:
            delta["content"] = part.content
        if part.pieces:
            delta["tool_calls"] = _numbered(part.pieces, n_calls)
        return delta

    def finish_reason(self, reason: FinishReason | None) -> str | None:
        """In OpenAI's words; where the request named the function, calls end with "stop"."""
        calls = self._reader is not None and self._reader.n_calls > 0 and not self._is_named
        return "tool_calls" if reason == "stop" and calls else reason


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _numbered(pieces: Sequence[CallPiece], n_calls: int) -> list[dict[str, Any]]:
    """Entries of a delta, one for each call, behind `n_calls` calls before."""
    entries: list[dict[str, Any]] = []
    for piece in pieces:
        if piece.name is not None:
            call = _call(ToolCall(piece.name, piece.arguments))
            entries.append({"index": n_calls} | call)
            n_calls += 1
        elif entries:
            entries[-1]["function"]["arguments"] += piece.arguments
        else:
            entries.append({"index": n_calls - 1, "function": {"arguments": piece.arguments}})
    return entries
