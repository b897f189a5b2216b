"""What travels between the engine and its ranks: plain, picklable data without tensors."""

from dataclasses import dataclass, field

from sidewinder.sampling import SamplingParams, TokenLogprobs
from sidewinder.state.cache.ops import StateOp

PENDING = -1
"""In `SequenceStep.tokens`: the token that the step before this one draws, known to ranks only."""


@dataclass(frozen=True)
class SequenceStep:
    """One sequence's part in a step.

    Attributes:
        slot: its state slot.
        tokens: the ids to run now; `PENDING` alone in a step that is started ahead.
        start: how many of its tokens are already in the state (0: fresh).
        pages: hybrids: KV pages that cover `start + len(tokens)` tokens.
        sample: draw the next token from the last row's logits.
        score: for every row, its next token's id, to report that token's logprob (and the top
            ones); empty when not wanted. -1 where there is no next token.
        top_logprobs: how many alternatives to report for scored rows.
        return_logits: send back float32 logits of all rows.
        allowed: tokens that may be drawn, one bit per id, the lowest bit of each byte first; empty
            allows all.
        draft_slots: a slot for each of the last tokens that is a draft (`engine.drafts`). Every
            token is then a row that goes on from the one before it: the first leaves its state in
            `slot`, each draft in its own, and a token is drawn behind each.
        draft_allowed: as `allowed`, behind each draft; empty allows all.
    """

    slot: int
    tokens: tuple[int, ...]
    start: int
    pages: tuple[int, ...] = ()
    sample: bool = False
    score: tuple[int, ...] = ()
    top_logprobs: int = 0
    return_logits: bool = False
    allowed: bytes = b""
    draft_slots: tuple[int, ...] = ()
    draft_allowed: tuple[bytes, ...] = ()

    @property
    def slots(self) -> tuple[int, ...]:
        """Where its rows leave their states."""
        return (self.slot, *self.draft_slots)

    @property
    def n_rows(self) -> int:
        """How many tokens are drawn for it, if any: each behind a row of its own."""
        return 1 + len(self.draft_slots)

    @property
    def drafts(self) -> tuple[int, ...]:
        """The tokens that are drafts."""
        return self.tokens[len(self.tokens) - len(self.draft_slots) :]

    @property
    def masks(self) -> tuple[bytes, ...]:
        """What may be drawn behind each of its rows that draw."""
        if not self.draft_slots:  # As in most steps: this is asked for often.
            return (self.allowed,)
        return (self.allowed, *(self.draft_allowed or (b"",) * len(self.draft_slots)))

    @property
    def is_single(self) -> bool:
        """Whether it runs one token, drafts aside."""
        return len(self.tokens) == self.n_rows


@dataclass(frozen=True)
class Admission:
    """Sent once with a sequence's first step: what its sampler must know.

    Attributes:
        slot: its state slot (a sampler that was in this slot before is forgotten).
        params: how to draw.
        seed: seed of this sequence's own random stream.
        prompt_tokens: needed by penalties; empty when they are off.
        eos_token_ids: ids that end the text; masked until `min_tokens`.
    """

    slot: int
    params: SamplingParams
    seed: int
    prompt_tokens: tuple[int, ...]
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class StepPlan:
    """One step: what to do with kept states, the samplers that are new, then the sequences.

    Attributes:
        sequences: single ones first; none in a step that only moves states.
        admissions: what samplers must know.
        state_ops: done first, in this order.
        ahead: the step after this one, to be started before this one's tokens are waited for.
        started: this is what the last plan's `ahead` was, and it was started.
    """

    sequences: tuple[SequenceStep, ...]
    admissions: tuple[Admission, ...] = ()
    state_ops: tuple[StateOp, ...] = ()
    ahead: tuple[SequenceStep, ...] = ()
    started: bool = False


@dataclass
class SequenceResult:
    """What a step gives back for one sequence.

    Attributes:
        tokens: the sampled ids: one where the plan asks for it, and one more for each draft that
            was accepted.
        logprobs: of the sampled tokens, when its params ask for them; else empty.
        scores: one entry per row of `score`, None where it was -1.
        logits: float32 numpy `[rows, vocab_size]`, when asked for.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    scores: list[TokenLogprobs | None] = field(default_factory=list)
    logits: object | None = None


@dataclass
class StepResult:
    """What a step gives back.

    Attributes:
        sequences: in the order of `StepPlan.sequences`.
        failed: why, by snapshot, for operations that could not be done (disk).
        ahead: whether the plan's `ahead` was started; it then comes as the next plan.
    """

    sequences: list[SequenceResult]
    failed: dict[int, str] = field(default_factory=dict)
    ahead: bool = False
