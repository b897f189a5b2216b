"""Items of a response while they grow, and the events that tell of it."""

import secrets
from collections.abc import Iterator
from typing import Any

from sidewinder.chat import CallPiece, Part

News = tuple[str, dict[str, Any]]
"""An event's type, and what it holds beside that."""


class Items:
    """The output of one response.

    Attributes:
        output: the items so far; the last one grows until it is closed.
    """

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._is_open = False

    @property
    def reasoning(self) -> str:
        """All that was thought."""
        return "".join(
            part["text"] for item in self.output if item["type"] == "reasoning"
            for part in item["content"]
        )  # fmt: skip

    def add(self, part: Part) -> Iterator[News]:
        """Take in what is new in the answer."""
        if part.reasoning:
            yield from self._text("reasoning", part.reasoning)
        if part.content:
            yield from self._text("message", part.content)
        for piece in part.pieces:
            yield from self._call(piece)

    def end(self, status: str) -> Iterator[News]:
        """The answer is over: "completed" or "incomplete"."""
        if all(item["type"] == "reasoning" for item in self.output):
            # Clients expect an answer, if an empty one.
            yield from self._close(status)
            yield from self._open(_new("message"))
        yield from self._close(status)

    def _text(self, kind: str, text: str) -> Iterator[News]:
        if not self._is_open or self.output[-1]["type"] != kind:
            yield from self._close()
            yield from self._open(_new(kind))
        self._part()["text"] += text
        where = self._where() | {"content_index": 0}
        if kind == "message":
            yield "response.output_text.delta", where | {"delta": text, "logprobs": []}
        else:
            yield "response.reasoning_text.delta", where | {"delta": text}

    def _call(self, piece: CallPiece) -> Iterator[News]:
        if piece.name is not None:
            yield from self._close()
            yield from self._open(_new("function_call") | {"name": piece.name})
        if piece.arguments:
            self.output[-1]["arguments"] += piece.arguments
            arguments = "response.function_call_arguments.delta"
            yield arguments, self._where() | {"delta": piece.arguments}

    def _open(self, item: dict[str, Any]) -> Iterator[News]:
        self.output.append(item)
        self._is_open = True
        index = {"output_index": len(self.output) - 1}
        bare = item | {"content": []} if "content" in item else dict(item)
        yield "response.output_item.added", index | {"item": bare}
        if "content" in item:
            part = self._where() | {"content_index": 0, "part": dict(self._part())}
            yield "response.content_part.added", part

    def _close(self, status: str = "completed") -> Iterator[News]:
        if not self._is_open:
            return
        self._is_open = False
        item = self.output[-1]
        item["status"] = status
        if item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield "response.function_call_arguments.done", self._where() | done
        else:
            where, part = self._where() | {"content_index": 0}, self._part()
            text = {"text": part["text"]}
            if item["type"] == "message":
                yield "response.output_text.done", where | text | {"logprobs": []}
            else:
                yield "response.reasoning_text.done", where | text
            yield "response.content_part.done", where | {"part": dict(part)}
        index = {"output_index": len(self.output) - 1}
        yield "response.output_item.done", index | {"item": dict(item)}

    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = self.output[-1]["content"][0]
        return part

    def _where(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}


def _new(kind: str) -> dict[str, Any]:
    name = secrets.token_hex(12)
    if kind == "function_call":
        ids = {"id": f"fc_{name}", "call_id": f"call_{name}"}
        return {"type": kind, **ids, "name": "", "arguments": "", "status": "in_progress"}
    if kind == "reasoning":
        content = [{"type": "reasoning_text", "text": ""}]
        return {"type": kind, "id": f"rs_{name}", "summary": [], "content": content,
                "status": "in_progress"}  # fmt: skip
    content_text = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"type": kind, "id": f"msg_{name}", "role": "assistant", "content": [content_text],
            "status": "in_progress"}  # fmt: skip
