"""Bodies of replies: choices that grow, their logprobs, and usage."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidewinder.engine.intake import Call
from sidewinder.engine.outputs import Increment
from sidewinder.engine.request import FinishReason
from sidewinder.sampling import TokenLogprobs
from sidewinder.server.answers import Answer
from sidewinder.server.events import DONE, event, to_json
from sidewinder.server.params import Generation
from sidewinder.tokenizer import REPLACEMENT, Tokenizer


@dataclass
class Delta:
    """What is new in one choice since the last time."""

    text: str = ""
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.logprobs or self.finish_reason)


class Choice:
    """One choice of a reply while it grows.

    Args:
        index: its number in the reply.
        call: its request.
        opening: text to begin with: the prompt, for `echo`.
        echo: begin with the prompt's logprobs too.
        answer: of a chat.
    """

    def __init__(
        self,
        index: int,
        call: Call,
        opening: str = "",
        echo: bool = False,
        answer: Answer | None = None,
    ) -> None:
        self.index = index
        self.call = call
        self.answer = answer or Answer()
        self.n_tokens = 0
        self.n_cached = 0
        self.n_accepted = self.n_rejected = 0
        self.finish_reason: FinishReason | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] = [None]
        self.n_characters = 0
        self._delta = Delta(opening)
        self._echo = echo
        self._started = False

    def take(self, increment: Increment) -> None:
        """Add what a step brought."""
        missing = len(self.call.request.prompt) - len(self.prompt_logprobs)
        self.prompt_logprobs += increment.scores[:missing]
        self.n_tokens += len(increment.token_ids)
        if increment.output is not None:
            metrics = increment.output.metrics
            self.n_cached, self.n_accepted = metrics.cached_tokens, metrics.accepted_tokens
            self.n_rejected = metrics.draft_tokens - metrics.accepted_tokens
        self.finish_reason = self._delta.finish_reason = increment.finish_reason
        self._delta.text += increment.text
        self._delta.logprobs += increment.logprobs or []
        if not self._started and (increment.token_ids or increment.finish_reason):
            self._started = True
            if self._echo and self.call.request.params.prompt_logprobs is not None:
                self._delta.logprobs[:0] = self.prompt_logprobs

    def new(self) -> Delta:
        """What came since the last call; empty until the first token is there."""
        if not self._started:
            return Delta()
        delta, self._delta = self._delta, Delta()
        return delta


class Writer:
    """Writes logprobs in both of OpenAI's shapes.

    Args:
        tokenizer: names the tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._names: dict[int, str] = {}

    def completion_logprobs(
        self, choice: Choice, entries: Sequence[TokenLogprobs | None]
    ) -> dict[str, Any]:
        """`logprobs` of a completion's choice; `None` is the first token of an echoed prompt."""
        tokens, offsets = [], []
        for entry in entries:
            token = choice.call.request.prompt[0] if entry is None else entry.token_id
            name = self.name(token)
            tokens.append(name)
            offsets.append(choice.n_characters)
            choice.n_characters += len(name)
        return {
            "tokens": tokens,
            "token_logprobs": [None if entry is None else entry.logprob for entry in entries],
            "top_logprobs": [None if entry is None else self._top(entry) for entry in entries],
            "text_offset": offsets,
        }

    def chat_logprobs(self, entries: Iterable[TokenLogprobs | None]) -> dict[str, Any]:
        """`logprobs` of a chat's choice."""
        content = [
            self._chat_token(entry.token_id, entry.logprob)
            | {"top_logprobs": [self._chat_token(*pair) for pair in entry.top]}
            for entry in entries
            if entry is not None
        ]
        return {"content": content, "refusal": None}

    def prompt_logprobs(
        self, entries: Iterable[TokenLogprobs | None]
    ) -> list[dict[str, Any] | None]:
        """`prompt_logprobs`, by token id: an extension that other servers have too."""
        return [None if entry is None else self._by_id(entry) for entry in entries]

    def name(self, token: int) -> str:
        """The text of one token by itself."""
        if token not in self._names:
            self._names[token] = self._tokenizer.decode([token], skip_special_tokens=False)
        return self._names[token]

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """By text, the better one where two tokens have the same; the token itself included."""
        top: dict[str, float] = {}
        for token, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            top.setdefault(self.name(token), logprob)
        return top

    def _chat_token(self, token: int, logprob: float) -> dict[str, Any]:
        name = self.name(token)
        raw = None if REPLACEMENT in name else list(name.encode())
        return {"token": name, "logprob": logprob, "bytes": raw}

    def _by_id(self, entry: TokenLogprobs) -> dict[str, Any]:
        ranked = {token: (logprob, rank) for rank, (token, logprob) in enumerate(entry.top, 1)}
        ranked[entry.token_id] = (entry.logprob, entry.rank)
        return {
            str(token): {"logprob": logprob, "rank": rank, "decoded_token": self.name(token)}
            for token, (logprob, rank) in ranked.items()
        }


class Reply(ABC):
    """Builds the JSON of one reply, whole or as events of a stream.

    Attributes:
        choices: all of them, in order; they grow.
    """

    choices: Sequence[Choice]

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
    def failure(self, error: dict[str, Any]) -> list[bytes]:
        """The last events of a stream that broke; `error` is as a body has it."""


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

    def failure(self, error: dict[str, Any]) -> list[bytes]:
        return [event(error)]

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
