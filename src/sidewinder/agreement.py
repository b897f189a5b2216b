"""How close one model's predictions are to another's, row by row of logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Figures over all predicted tokens of a text.

    Attributes:
        n_predicted: how many.
        perplexity, reference_perplexity: of the model, and of the one it is compared with.
        mean_kl, p99_kl: KL divergence of the model's prediction from the reference's, in nats:
            its mean, and what 99 % of the tokens stay below.
        top1_agreement: share of tokens where both find the same token likeliest.
    """

    n_predicted: int
    perplexity: float
    reference_perplexity: float
    mean_kl: float
    p99_kl: float
    top1_agreement: float


class AgreementMeter:
    """Collects rows of logits of both models, in any number of blocks."""

    def __init__(self) -> None:
        self._kl: list[Tensor] = []
        self._same = 0
        self._logprob = 0.0
        self._reference_logprob = 0.0

    def add(self, reference: Tensor, logits: Tensor, next_tokens: Tensor) -> None:
        """One block.

        Args:
            reference, logits: `[rows, vocab_size]` of the two models, at the same positions.
            next_tokens: int64 `[rows]`, the token that each row predicts.
        """
        assert reference.shape == logits.shape, f"{reference.shape} is not {logits.shape}"
        expected = reference.double().log_softmax(-1)
        found = logits.double().log_softmax(-1)
        self._kl.append((expected.exp() * (expected - found)).sum(-1))
        self._same += int((expected.argmax(-1) == found.argmax(-1)).sum())
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
        )
