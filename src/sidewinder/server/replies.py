"""Bodies of replies, whole or as events."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from sidewinder.server.choice import Choice, Delta
from sidewinder.server.errors import ApiError
from sidewinder.server.events import COMMENT, DONE, event, to_json
from sidewinder.server.logprobs import Writer
from sidewinder.server.params import Generation


class Reply(ABC):
    """Builds the JSON of one reply, whole or as events of a stream.

    Attributes:
        choices: all of them, in order; they grow.
        silence: what a stream has after a while without an event.
    """

    choices: Sequence[Choice]
    silence: bytes = COMMENT

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The reply, once all choices are complete."""

    @abstractmethod
    def opening(self) -> list[bytes]:
        """Events before any text is there."""

    @abstractmethod
    def news(self, choice: Choice) -> list[bytes]:
        """Events for what is new in one choice; none if nothing is."""

    @abstractmethod
    def ending(self) -> list[bytes]:
        """Events once all choices are complete."""

    @abstractmethod
    def failure(self, error: ApiError) -> list[bytes]:
        """The last events of a stream that broke."""


class CompletionReply(Reply):
    """Replies of completions and chats.

    Args:
        request_id: becomes part of its id.
        model: the served name.
        is_chat: chat or completion.
        choices: all of them, in order.
        asked: the request: choices per prompt (their prompt's tokens count once), whether to list
            `prompt_logprobs`, and usage in streams.
        writer: of logprobs.
    """

    def __init__(
        self,
        request_id: str,
        model: str,
        is_chat: bool,
        choices: Sequence[Choice],
        asked: Generation,
        writer: Writer,
    ) -> None:
        self.choices = choices
        self._is_chat = is_chat
        self._asked = asked
        self._writer = writer
        self._head = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{request_id}",
            "created": int(time.time()),
            "model": model,
        }
        # The same in every event of a stream, so written once.
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        head = to_json(self._head | {"object": kind})
        self._event_head = b"data: " + head[:-1] + b',"choices":'

    def usage(self) -> dict[str, Any]:
        """Tokens so far; those from the cache, and drafts, once a choice is complete."""
        prompts = self.choices[:: self._asked.n]
        prompt_tokens = sum(len(choice.call.request.prompt) for choice in prompts)
        completion_tokens = sum(choice.n_tokens for choice in self.choices)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(choice.n_cached for choice in prompts)},
            "completion_tokens_details": {
                "accepted_prediction_tokens": sum(choice.n_accepted for choice in self.choices),
                "rejected_prediction_tokens": sum(choice.n_rejected for choice in self.choices),
            },
        }

    def whole(self) -> dict[str, Any]:
        kind = "chat.completion" if self._is_chat else "text_completion"
        choices = []
        for choice in self.choices:
            part = self._part(choice, choice.new(), "message")
            if self._asked.report_prompt:
                scores = self._writer.prompt_logprobs(choice.prompt_logprobs)
                part["prompt_logprobs"] = scores
            choices.append(part)
        return self._head | {"object": kind, "choices": choices, "usage": self.usage()}

    def opening(self) -> list[bytes]:
        """A chat's answers begin with their role."""
        choices = [
            {
                "index": choice.index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            for choice in self.choices
        ]
        return [self._event(choices, None)] if self._is_chat else []

    def news(self, choice: Choice) -> list[bytes]:
        delta = choice.new()
        if delta.is_empty:
            return []
        part = self._part(choice, delta, "delta")
        if not (part.get("delta", True) or part["logprobs"] or part["finish_reason"]):
            return []
        return [self._event([part], self.usage() if self._asked.continuous_usage else None)]

    def ending(self) -> list[bytes]:
        return [*([self._event([], self.usage())] if self._asked.include_usage else []), DONE]

    def failure(self, error: ApiError) -> list[bytes]:
        return [event(error.body())]

    def _event(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any] | None) -> bytes:
        """One event of a stream; `usage` is null in all but the last, where it is asked for."""
        end = b"}\n\n"
        if self._asked.include_usage:
            end = b',"usage":' + to_json(usage) + end
        return self._event_head + to_json(choices) + end

    def _part(self, choice: Choice, delta: Delta, name: str) -> dict[str, Any]:
        part: dict[str, Any] = {"index": choice.index}
        wanted = choice.call.request.params.logprobs is not None
        logprobs = None
        if self._is_chat:
            last = delta.finish_reason is not None
            write = choice.answer.message if name == "message" else choice.answer.delta
            part[name] = write(delta.text, last)
            if wanted:
                logprobs = self._writer.chat_logprobs(delta.logprobs)
        else:
            part["text"] = delta.text
            if wanted:
                logprobs = self._writer.completion_logprobs(choice, delta.logprobs)
        reason = choice.answer.finish_reason(delta.finish_reason)
        return part | {"logprobs": logprobs, "finish_reason": reason}
