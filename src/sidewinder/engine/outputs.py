"""What comes back from the engine: text as it grows, and the finished output of a request."""

import math
from dataclasses import dataclass, field
from typing import Any

from sidewinder.engine.request import FinishReason
from sidewinder.sampling import TokenLogprobs
from sidewinder.state.cache.cache import Kept


@dataclass
class Metrics:
    """Times of one request, in seconds of a monotonic clock, and its tokens.

    Attributes:
        arrival_s, scheduled_s, first_token_s, finished_s: points in time (`time.perf_counter`).
        prompt_tokens, output_tokens: counts.
        cached_tokens: prompt tokens that were not run: their state was kept (docs/state-cache.md).
        draft_tokens, accepted_tokens: guessed ahead (`speculate`, docs/generation.md), and right.
    """

    arrival_s: float
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def queue_s(self) -> float | None:
        """From arrival until its first step began."""
        return None if self.scheduled_s is None else self.scheduled_s - self.arrival_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from arrival."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None for fewer than two tokens."""
        if self.first_token_s is None or self.finished_s is None or self.output_tokens < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def total_s(self) -> float | None:
        """From arrival until it was complete."""
        return None if self.finished_s is None else self.finished_s - self.arrival_s


@dataclass
class RequestOutput:
    """Everything about one finished request.

    Attributes:
        request_id: names the request.
        prompt: the prompt's text, None if token ids were given.
        prompt_token_ids: what was run.
        text: the new text; "" where no tokenizer is at hand. Ends before a stop string or stop id
            (or after it, with `include_stop_str_in_output`).
        token_ids: the new tokens, an ending id included.
        finish_reason: "stop" (end-of-text, stop id or stop string) or "length".
        stop_string: that which ended it, if one did.
        logprobs: one entry per new token, when asked for.
        prompt_logprobs: one entry per prompt token, the first None, when asked for.
        metrics: times and counts.
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    metrics: Metrics
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_string: str | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None


@dataclass
class Increment:
    """What one step added to one request.

    Attributes:
        request_id: names the request.
        text: new text that is certain (possibly none yet).
        token_ids: new tokens.
        logprobs: theirs, when asked for.
        logits: float32 numpy `[rows, vocab_size]` of the prompt rows just run, when asked for.
        scores: of the prompt rows just run, when asked for.
        finish_reason: set on the last increment.
        output: the finished output, on the last increment.
        kept: the caller's state, on the last increment of a request that asked for it.
    """

    request_id: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    logits: Any = None
    scores: list[TokenLogprobs | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    output: RequestOutput | None = None
    kept: Kept | None = None


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text.

    Attributes:
        logprob: sum of the natural-log probabilities of its tokens after the first.
        n_predicted: how many those are.
    """

    logprob: float
    n_predicted: int

    @property
    def perplexity(self) -> float:
        """exp of the mean negative logprob; infinite where that overflows."""
        try:
            return math.exp(-self.logprob / self.n_predicted)
        except OverflowError:
            return math.inf
