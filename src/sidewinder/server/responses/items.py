"""Items of a response while they grow, and the events that tell of it."""

import secrets
from collections.abc import Iterator
from typing import Any

from sidewinder.server.sections import Kind, News, Sections


class Items(Sections):
    """The output of one response."""

    @property
    def reasoning(self) -> str:
        """All that was thought."""
        return "".join(
            part["text"] for item in self.output if item["type"] == "reasoning"
            for part in item["content"]
        )  # fmt: skip

    def end(self, status: str) -> Iterator[News]:
        """The answer is over: "completed" or "incomplete"."""
        if all(item["type"] == "reasoning" for item in self.output):
            # Clients expect an answer, if an empty one.
            yield from self.close(status)
            yield from self.open("text")
        yield from self.close(status)

    def _new(self, kind: Kind, name: str) -> dict[str, Any]:
        own = secrets.token_hex(12)
        item: dict[str, Any]
        if kind == "call":
            ids = {"id": f"fc_{own}", "call_id": f"call_{own}"}
            item = {"type": "function_call", **ids, "name": name, "arguments": ""}
        elif kind == "reasoning":
            thought = [{"type": "reasoning_text", "text": ""}]
            item = {"type": kind, "id": f"rs_{own}", "summary": [], "content": thought}
        else:
            text = [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]
            item = {"type": "message", "id": f"msg_{own}", "role": "assistant", "content": text}
        return item | {"status": "in_progress"}

    def _opened(self) -> Iterator[News]:
        item = self.output[-1]
        bare = item | {"content": []} if "content" in item else dict(item)
        yield "response.output_item.added", self._index() | {"item": bare}
        if "content" in item:
            yield "response.content_part.added", self._where() | {"part": dict(self._part())}

    def _grown(self, text: str) -> Iterator[News]:
        where = self._where() | {"delta": text}
        if self.kind == "call":
            self.output[-1]["arguments"] += text
            yield "response.function_call_arguments.delta", where
            return
        self._part()["text"] += text
        if self.kind == "text":
            yield "response.output_text.delta", where | {"logprobs": []}
        else:
            yield "response.reasoning_text.delta", where

    def _closed(self, status: str) -> Iterator[News]:
        item = self.output[-1]
        item["status"] = status
        if self.kind == "call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield "response.function_call_arguments.done", self._where() | done
        else:
            where, part = self._where(), self._part()
            if self.kind == "text":
                yield "response.output_text.done", where | {"text": part["text"], "logprobs": []}
            else:
                yield "response.reasoning_text.done", where | {"text": part["text"]}
            yield "response.content_part.done", where | {"part": dict(part)}
        yield "response.output_item.done", self._index() | {"item": dict(item)}

    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = self.output[-1]["content"][0]
        return part

    def _index(self) -> dict[str, Any]:
        return {"output_index": len(self.output) - 1}

    def _where(self) -> dict[str, Any]:
        content = {} if self.kind == "call" else {"content_index": 0}
        return {"item_id": self.output[-1]["id"]} | self._index() | content
