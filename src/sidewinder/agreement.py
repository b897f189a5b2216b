"""How close one model's predictions are to another's, row by row of logits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sidewinder.models.base import Model
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.state.spec import PAGE_SIZE

BLOCK_LOGITS = 1 << 22
"""Logits of one model that are compared at once: 32 MiB in float64."""


@dataclass(frozen=True)
class Agreement:
    """Figures over all predicted tokens of a text.

    Attributes:
        n_predicted: how many.
        perplexity, reference_perplexity: of the model, and of the one it is compared with.
        mean_kl, p99_kl: KL divergence of the model's prediction from the reference's, in nats:
            its mean, and what 99 % of the tokens stay below.
        top1_agreement: share of tokens where both find the same token likeliest.
        top1_ties: share of tokens where they differ, but the reference finds both tokens exactly
            as likely: 16-bit logits often coincide, and then the first in the vocabulary counts.
    """

    n_predicted: int
    perplexity: float
    reference_perplexity: float
    mean_kl: float
    p99_kl: float
    top1_agreement: float
    top1_ties: float

    @property
    def top1_error(self) -> float:
        """Standard error of `top1_agreement`, if tokens were independent."""
        return math.sqrt(self.top1_agreement * (1 - self.top1_agreement) / self.n_predicted)


class AgreementMeter:
    """Collects predictions of both models, in any number of blocks."""

    def __init__(self) -> None:
        self._kl: list[Tensor] = []
        self._same = self._tied = 0
        self._logprob = 0.0
        self._reference_logprob = 0.0

    def add(self, reference: Tensor, logits: Tensor, next_tokens: Tensor) -> None:
        """One block.

        Args:
            reference, logits: `[rows, vocab_size]` of the two models, at the same positions;
                logits, or logarithms of probabilities.
            next_tokens: int64 `[rows]`, the token that each row predicts.
        """
        assert reference.shape == logits.shape, f"{reference.shape} is not {logits.shape}"
        expected = reference.double().log_softmax(-1)
        found = logits.double().log_softmax(-1)
        self._kl.append((expected.exp() * (expected - found)).sum(-1).cpu())
        best, own = expected.argmax(-1, keepdim=True), found.argmax(-1, keepdim=True)
        self._same += int((best == own).sum())
        self._tied += int(
            ((best != own) & (expected.gather(-1, best) == expected.gather(-1, own))).sum()
        )
        self._reference_logprob += float(expected.gather(-1, next_tokens[:, None]).sum())
        self._logprob += float(found.gather(-1, next_tokens[:, None]).sum())

    def result(self) -> Agreement:
        """The figures of all blocks."""
        kl = torch.cat(self._kl)
        return Agreement(
            n_predicted=len(kl),
            perplexity=math.exp(-self._logprob / len(kl)),
            reference_perplexity=math.exp(-self._reference_logprob / len(kl)),
            mean_kl=float(kl.mean()),
            p99_kl=float(kl.sort().values[math.ceil(0.99 * len(kl)) - 1]),
            top1_agreement=self._same / len(kl),
            top1_ties=self._tied / len(kl),
        )


@dataclass(frozen=True)
class Variant:
    """A model, and what makes it the variant that is meant: called before each of its forwards."""

    model: Model
    prepare: Callable[[], None] = lambda: None


class Comparison:
    """One rank's part of running variants beside a reference over the same text.

    Args:
        reference: what the others are compared with.
        variants: the others, of the same architecture and on the same ranks.
        window: most tokens of a window.
        state_dtype: of the SSM state.
        answers: whether this rank's figures are wanted; else it only takes part.
    """

    def __init__(
        self,
        reference: Variant,
        variants: Sequence[Variant],
        window: int,
        state_dtype: torch.dtype = torch.float32,
        answers: bool = True,
    ) -> None:
        self._variants = [reference, *variants]
        self._pools = [_pool(variant.model, window, state_dtype) for variant in self._variants]
        self._meters = [AgreementMeter() for _ in variants]
        self._answers = answers

    @torch.inference_mode()
    def run(self, tokens: Sequence[int]) -> None:
        """One window of text: every variant reads it from the start, with empty state."""
        hidden = [
            _forward(variant, pool, tokens)
            for variant, pool in zip(self._variants, self._pools, strict=True)
        ]
        next_tokens = torch.tensor(tokens[1:], device=hidden[0].device)
        rows = max(1, BLOCK_LOGITS // self._variants[0].model.config.vocab_size)
        for start in range(0, len(next_tokens), rows):
            stop = min(start + rows, len(next_tokens))
            expected, *found = (
                variant.model.logits(states[start:stop])
                for variant, states in zip(self._variants, hidden, strict=True)
            )
            if not self._answers:
                continue
            for meter, logits in zip(self._meters, found, strict=True):
                meter.add(expected, logits, next_tokens[start:stop])

    def result(self) -> list[Agreement]:
        """The figures of each variant over all windows; none unless this rank answers."""
        return [meter.result() for meter in self._meters] if self._answers else []


def _pool(model: Model, window: int, state_dtype: torch.dtype) -> StatePool:
    """State of one sequence of at most `window` tokens."""
    activations = model.final_norm
    return StatePool(
        model.config,
        model.dims,
        1,
        activations.dtype,
        activations.device,
        n_pages=-(-window // PAGE_SIZE),
        page_size=PAGE_SIZE,
        state_dtype=state_dtype,
    )


def _forward(variant: Variant, pool: StatePool, tokens: Sequence[int]) -> Tensor:
    pages = None
    if pool.kv is not None:
        pages = [list(range(-(-len(tokens) // PAGE_SIZE)))]
    batch = pack([list(tokens)], [0], page_tables=pages, device=pool.conv.device)
    variant.prepare()
    return variant.model.forward(batch, pool)
