"""Blocks of a message while they grow, and the events that tell of it."""

import json
import secrets
from collections.abc import Iterator
from typing import Any

from sidewinder.server.sections import Kind, News, Sections

INVALID = "INVALID_JSON"
"""The only key of a call's input where its text is no JSON object; the value is that text."""


class Blocks(Sections):
    """The content of one message."""

    def __init__(self) -> None:
        super().__init__()
        self._arguments = ""

    @property
    def has_calls(self) -> bool:
        """Whether any tool is called."""
        return any(block["type"] == "tool_use" for block in self.output)

    def _new(self, kind: Kind, name: str) -> dict[str, Any]:
        if kind == "call":
            self._arguments = ""
            return {
                "type": "tool_use",
                "id": f"toolu_{secrets.token_hex(12)}",
                "name": name,
                "input": {},
            }
        if kind == "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "text", "text": ""}

    def _opened(self) -> Iterator[News]:
        yield "content_block_start", self._where() | {"content_block": dict(self.output[-1])}

    def _grown(self, text: str) -> Iterator[News]:
        block = self.output[-1]
        if self.kind == "call":
            self._arguments += text
            delta = {"type": "input_json_delta", "partial_json": text}
        elif self.kind == "reasoning":
            block["thinking"] += text
            delta = {"type": "thinking_delta", "thinking": text}
        else:
            block["text"] += text
            delta = {"type": "text_delta", "text": text}
        yield "content_block_delta", self._where() | {"delta": delta}

    def _closed(self, status: str) -> Iterator[News]:  # noqa: ARG002
        if self.kind == "call":
            self.output[-1]["input"] = _read(self._arguments)
        yield "content_block_stop", self._where()

    def _where(self) -> dict[str, Any]:
        return {"index": len(self.output) - 1}


def _read(arguments: str) -> dict[str, Any]:
    """The object that a call's arguments are, also where a model wrote none, or not to its end."""
    try:
        value = json.loads(arguments or "{}")
        # Python's reader takes NaN, and numbers beyond doubles: no JSON, and no client's would.
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {INVALID: arguments}
