"""A request: what is asked, how far its sequence has come, and what a step added."""

from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import Literal

from sidewinder.engine.drafts import Drafter
from sidewinder.engine.plan import PENDING, Admission, SequenceResult, SequenceStep
from sidewinder.sampling import Constraint, SamplingParams
from sidewinder.state.cache.cache import Kept

FinishReason = Literal["stop", "length"]

NO_NEXT_TOKEN = -1
"""In `SequenceStep.score`: the row's next token is not known, so it is not scored."""


@dataclass(frozen=True)
class Request:
    """One prompt and what to do with it.

    Attributes:
        id: names the request in results.
        prompt: token ids, at least one.
        params: how to continue, with all that was left open resolved; `prompt_logprobs` scores
            the prompt.
        seed: of its random stream.
        eos_token_ids: ids that end the text, unless `params.ignore_eos`.
        generate: continue the prompt; else only run it, for scores or logits.
        return_logits: send back the logits of all prompt rows.
        constraint: follows the text and says what may come next.
        priority: requests with a lower number go first.
        namespace: of cached states; requests of different ones share none.
        resume: a caller's state that holds the first tokens of the prompt.
        keep: keep the state of the prompt for the caller.
        prediction: what may follow the prompt, for drafts.
    """

    id: int
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int = 0
    eos_token_ids: tuple[int, ...] = ()
    generate: bool = True
    return_logits: bool = False
    constraint: Constraint | None = field(default=None, compare=False)
    priority: int = 0
    namespace: str = ""
    resume: Kept | None = None
    keep: bool = False
    prediction: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.prompt, "a request without tokens"
        assert not self.generate or self.params.max_tokens is not None, "max_tokens not resolved"

    @property
    def reads_all(self) -> bool:
        """Whether something is wanted of every row of the prompt, so that all of it must run."""
        return self.return_logits or self.params.prompt_logprobs is not None

    @property
    def max_stored_tokens(self) -> int:
        """Most tokens that its state ever holds: the last one drawn is never run."""
        if not self.generate:
            return len(self.prompt)
        assert self.params.max_tokens is not None
        return len(self.prompt) + self.params.max_tokens - 1


@dataclass
class Sequence:
    """A request that has a slot.

    Attributes:
        request: what is asked.
        slot: its place in the state pool.
        pages: hybrids: KV pages reserved for `request.max_stored_tokens`.
        n_stored: tokens already in the state.
        output: tokens drawn so far.
        n_cached: tokens that were in the state when the sequence got its slot.
        boundaries: where prefill stops to keep the state.
        n_ahead: tokens that a step started ahead is running; the state will hold them, too.
        drafter: guesses what it says next, where drafts are wanted.
    """

    request: Request
    slot: int
    pages: tuple[int, ...] = ()
    n_stored: int = 0
    output: list[int] = field(default_factory=list)
    n_cached: int = 0
    boundaries: set[int] = field(default_factory=set)
    n_ahead: int = 0
    drafter: Drafter | None = None

    @property
    def n_before_boundary(self) -> int:
        """Tokens that may run before the state must be kept, or the prompt ends."""
        length = len(self.request.prompt)
        return (
            min((b for b in self.boundaries if b > self.n_stored), default=length) - self.n_stored
        )

    @property
    def stored_tokens(self) -> tuple[int, ...]:
        """The tokens in the state, after all that was started."""
        return (*self.request.prompt, *self.output)[: self.n_stored + self.n_ahead]

    @property
    def prefilling(self) -> bool:
        return self.n_stored < len(self.request.prompt)

    def decode_step(self, page_size: int, free_slots: List[int] = ()) -> SequenceStep:
        """The token drawn last as this sequence's part of a step, and drafts of the next ones, as
        many as there are slots for them."""
        assert not self.prefilling, "the prompt comes first"
        drafts, masks = self._draft(len(free_slots))
        tokens = (self.output[-1], *drafts)
        return SequenceStep(
            slot=self.slot,
            tokens=tokens,
            start=self.n_stored,
            pages=self._pages_up_to(self.n_stored + len(tokens), page_size),
            sample=True,
            allowed=self._allowed(),
            draft_slots=tuple(free_slots[: len(drafts)]),
            draft_allowed=masks,
        )

    def prefill_step(self, n_tokens: int, page_size: int) -> SequenceStep:
        """The next `n_tokens` tokens of the prompt as this sequence's part of a step."""
        request, start, stop = self.request, self.n_stored, self.n_stored + n_tokens
        assert n_tokens > 0, "no empty parts"
        assert stop <= len(request.prompt), "the prompt has so many tokens left"
        sample = request.generate and stop == len(request.prompt)
        return SequenceStep(
            slot=self.slot,
            tokens=request.prompt[start:stop],
            start=start,
            pages=self._pages_up_to(stop, page_size),
            sample=sample,
            score=self._next_tokens(start, stop),
            top_logprobs=request.params.prompt_logprobs or 0,
            return_logits=request.return_logits,
            allowed=self._allowed() if sample else b"",
        )

    @property
    def draws_alone(self) -> bool:
        """Whether its next two tokens can be drawn without the host knowing the first."""
        request = self.request
        reports = request.keep or request.params.logprobs is not None
        needs_host = reports or request.constraint is not None or self._adjusts
        return not (needs_host or self.prefilling)

    @property
    def _adjusts(self) -> bool:
        """Whether its params change the logits that its next token is drawn from."""
        params = self.request.params
        waits = len(self.output) < params.min_tokens
        return bool(params.has_penalties or params.logit_bias or waits)

    def step_after(self, step: SequenceStep, page_size: int) -> SequenceStep | None:
        """What follows `step`, which draws its next token; None if that is the last one."""
        assert self.request.params.max_tokens is not None
        if len(self.output) + 1 >= self.request.params.max_tokens:
            return None
        start = step.start + 1
        pages = self._pages_up_to(start + 1, page_size)
        return SequenceStep(
            slot=self.slot, tokens=(PENDING,), start=start, pages=pages, sample=True
        )

    @property
    def has_drafts(self) -> bool:
        """Whether there are guesses of what it says next."""
        return bool(self._draft(1)[0])

    def _draft(self, most: int) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
        """Guesses of what it says behind the token drawn last, at most so many; and where a
        constraint says what may come, what may behind each."""
        constraint, params = self.request.constraint, self.request.params
        assert params.max_tokens is not None, "resolved by the engine"
        # Behind the last draft, too, a token is drawn.
        most = min(most, params.max_tokens - len(self.output) - 1)
        if self.drafter is None or most < 1 or self._adjusts:
            return (), ()
        drafts = self.drafter.draft(most)
        return (drafts, ()) if constraint is None else constraint.draft(drafts, most)

    def take(self, token: int) -> None:
        """A step drew `token`."""
        self.output.append(token)
        if self.drafter is not None:
            self.drafter.extend(token)
        if self.request.constraint is not None:
            self.request.constraint.take(token)

    def _pages_up_to(self, n_tokens: int, page_size: int) -> tuple[int, ...]:
        return self.pages[: -(-n_tokens // page_size)] if self.pages else ()

    def _allowed(self) -> bytes:
        constraint = self.request.constraint
        return b"" if constraint is None else constraint.allowed()

    def _next_tokens(self, start: int, stop: int) -> tuple[int, ...]:
        if self.request.params.prompt_logprobs is None:
            return ()
        following = self.request.prompt[start + 1 : stop + 1]
        return following + (NO_NEXT_TOKEN,) * (stop - start - len(following))

    def admission(self) -> Admission:
        """What the ranks' samplers must know before this sequence's first token."""
        request = self.request
        needs_prompt = request.params.penalises_repetition
        return Admission(
            slot=self.slot,
            params=request.params,
            seed=request.seed,
            prompt_tokens=request.prompt if needs_prompt else (),
            eos_token_ids=request.eos_token_ids,
        )

    def finish_reason(self) -> FinishReason | None:
        """Why the sequence is complete after the tokens it has, or None (stop strings aside)."""
        request, params = self.request, self.request.params
        if not request.generate:
            return None if self.prefilling else "length"
        if not self.output:
            return None
        ending = params.stop_token_ids
        if not params.ignore_eos:
            ending += request.eos_token_ids
        if self.output[-1] in ending and len(self.output) >= params.min_tokens:
            return "stop"
        return "length" if len(self.output) == params.max_tokens else None


@dataclass(frozen=True)
class Progress:
    """One sequence's part of a finished step.

    Attributes:
        sequence: after the step.
        start: how many of its tokens were in the state before.
        n_tokens: how many of those that were run it keeps: rejected drafts are forgotten.
        n_drafts: how many were drafts.
        result: what the step gave back.
        finish_reason: set when the sequence is complete; its slot is free again.
        kept: the caller's state, when the request asked for it and is complete.
    """

    sequence: Sequence
    start: int
    n_tokens: int
    n_drafts: int
    result: SequenceResult
    finish_reason: FinishReason | None
    kept: Kept | None = None
