"""Replies of /v1/messages, whole or as events."""

from collections.abc import Iterable, Sequence
from typing import Any

from sidewinder.server.choice import Choice
from sidewinder.server.errors import ApiError
from sidewinder.server.events import named_event
from sidewinder.server.messages.blocks import Blocks
from sidewinder.server.messages.schemas import MessagesRequest
from sidewinder.server.replies import Reply
from sidewinder.server.sections import News


class MessageReply(Reply):
    """The reply of one message.

    Args:
        request_id: becomes its id.
        model: the served name.
        body: the request.
        choices: its only one.
    """

    silence = named_event("ping", {"type": "ping"})

    def __init__(
        self, request_id: str, model: str, body: MessagesRequest, choices: Sequence[Choice]
    ) -> None:
        self.choices = choices
        self._blocks = Blocks()
        self._max_tokens = body.max_tokens
        self._head = {
            "id": f"msg_{request_id}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }

    def whole(self) -> dict[str, Any]:
        (choice,) = self.choices
        for _ in self._read(choice):
            continue
        return self._head | {"content": self._blocks.output, "usage": self._usage()} | self._end()

    def opening(self) -> list[bytes]:
        begun: dict[str, Any] = {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }
        return [*_events([("message_start", {"message": self._head | begun})]), self.silence]

    def news(self, choice: Choice) -> list[bytes]:
        return _events(self._read(choice))

    def ending(self) -> list[bytes]:
        told = {"delta": self._end(), "usage": self._usage()}
        return _events([("message_delta", told), ("message_stop", {})])

    def failure(self, error: ApiError) -> list[bytes]:
        return [named_event("error", error.body_for_messages())]

    def _read(self, choice: Choice) -> Iterable[News]:
        delta = choice.new()
        reason = delta.finish_reason
        for part in choice.answer.read(delta.text, reason is not None):
            yield from self._blocks.add(part)
        if reason is not None:
            yield from self._blocks.end(reason)

    def _end(self) -> dict[str, Any]:
        """Why it ended."""
        (choice,) = self.choices
        if choice.finish_reason == "length":
            # What the request asked for, or the server's own limit.
            cut = choice.n_tokens < self._max_tokens
            reason = "model_context_window_exceeded" if cut else "max_tokens"
        elif choice.stop_string is not None:
            reason = "stop_sequence"
        else:
            reason = "tool_use" if self._blocks.has_calls else "end_turn"
        return {"stop_reason": reason, "stop_sequence": choice.stop_string}

    def _usage(self) -> dict[str, Any]:
        """So far; tokens from the cache, which do not count as input, once it is complete."""
        (choice,) = self.choices
        return {
            "input_tokens": len(choice.call.request.prompt) - choice.n_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": choice.n_cached,
            "output_tokens": choice.n_tokens,
        }


def _events(news: Iterable[News]) -> list[bytes]:
    return [named_event(kind, {"type": kind} | fields) for kind, fields in news]
