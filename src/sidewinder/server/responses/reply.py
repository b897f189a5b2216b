"""Replies of /v1/responses, whole or as events."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sidewinder.server.choice import Choice
from sidewinder.server.errors import ApiError
from sidewinder.server.events import named_event
from sidewinder.server.replies import Reply
from sidewinder.server.responses.items import Items
from sidewinder.server.responses.schemas import ResponseRequest
from sidewinder.server.sections import News

STATUS = {"stop": "completed", "length": "incomplete"}


class ResponseReply(Reply):
    """The reply of one response.

    Args:
        request_id: becomes its id.
        model: the served name.
        body: the request, parts of which the reply repeats.
        count: tokens of a text.
        choices: its only one.
    """

    def __init__(
        self,
        request_id: str,
        model: str,
        body: ResponseRequest,
        count: Callable[[str], int],
        choices: Sequence[Choice],
    ) -> None:
        self.choices = choices
        self._items = Items()
        self._count = count
        self._n_events = 0
        self._head = {
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
        } | _repeated(body)

    def whole(self) -> dict[str, Any]:
        (choice,) = self.choices
        for _ in self._read(choice):
            continue
        return self._response(self._status(choice))

    def opening(self) -> list[bytes]:
        response = {"response": self._response("in_progress")}
        return self._events([("response.created", response), ("response.in_progress", response)])

    def news(self, choice: Choice) -> list[bytes]:
        return self._events(self._read(choice))

    def ending(self) -> list[bytes]:
        (choice,) = self.choices
        status = self._status(choice)
        return self._events([(f"response.{status}", {"response": self._response(status)})])

    def failure(self, error: ApiError) -> list[bytes]:
        told = {"code": "server_error", "message": error.message}
        response = self._response("failed") | {"error": told}
        return self._events([("response.failed", {"response": response})])

    def _read(self, choice: Choice) -> Iterable[News]:
        delta = choice.new()
        reason = delta.finish_reason
        for part in choice.answer.read(delta.text, reason is not None):
            yield from self._items.add(part)
        if reason is not None:
            yield from self._items.end(STATUS[reason])

    def _status(self, choice: Choice) -> str:
        assert choice.finish_reason is not None
        return STATUS[choice.finish_reason]

    def _events(self, news: Iterable[News]) -> list[bytes]:
        events = []
        for kind, fields in news:
            numbered = {"type": kind, "sequence_number": self._n_events} | fields
            events.append(named_event(kind, numbered))
            self._n_events += 1
        return events

    def _response(self, status: str) -> dict[str, Any]:
        ended = status in ("completed", "incomplete")
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return self._head | {
            "status": status,
            "error": None,
            "incomplete_details": cut,
            "output": self._items.output if ended else [],
            "usage": self._usage() if ended else None,
        }

    def _usage(self) -> dict[str, Any]:
        (choice,) = self.choices
        n_prompt = len(choice.call.request.prompt)
        return {
            "input_tokens": n_prompt,
            "input_tokens_details": {"cached_tokens": choice.n_cached},
            "output_tokens": choice.n_tokens,
            "output_tokens_details": {"reasoning_tokens": self._count(self._items.reasoning)},
            "total_tokens": n_prompt + choice.n_tokens,
        }


def _repeated(body: ResponseRequest) -> dict[str, Any]:
    """What a response says of its request."""
    dumped = body.model_dump(by_alias=True, exclude_none=True)
    same = ("instructions", "max_output_tokens", "temperature", "top_p", "user")
    return {name: dumped.get(name) for name in same} | {
        "metadata": dumped.get("metadata", {}),
        "parallel_tool_calls": dumped.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None} | dumped.get("reasoning", {}),
        "store": False,
        "text": {"format": {"type": "text"}} | dumped.get("text", {}),
        "tool_choice": dumped.get("tool_choice", "auto"),
        "tools": dumped.get("tools", []),
        "truncation": "disabled",
    }
