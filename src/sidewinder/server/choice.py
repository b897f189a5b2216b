"""One choice of a reply while it grows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sidewinder.engine.intake import Call
from sidewinder.engine.outputs import Increment
from sidewinder.engine.request import FinishReason
from sidewinder.sampling import TokenLogprobs
from sidewinder.server.answers import Answer
from sidewinder.server.offsets import Offsets


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
        opening_starts: where in the opening each token of the prompt begins.
        answer: of a chat.
    """

    def __init__(
        self,
        index: int,
        call: Call,
        opening: str = "",
        echo: bool = False,
        answer: Answer | None = None,
        opening_starts: Sequence[int] = (),
    ) -> None:
        self.index = index
        self.call = call
        self.answer = answer or Answer()
        self.n_tokens = 0
        self.n_cached = 0
        self.n_accepted = self.n_rejected = 0
        self.finish_reason: FinishReason | None = None
        self.stop_string: str | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] = [None]
        self.opening, self.opening_starts = opening, opening_starts
        self.offsets: Offsets | None = None
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
            self.stop_string = increment.output.stop_string
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
