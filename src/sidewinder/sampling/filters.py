"""Penalties and filters on one row of logits, as transformers and vLLM define them.

Each takes float32 logits `[vocab]` and returns new ones; a token that is filtered out has `-inf`.
"""

import torch
from torch import Tensor


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits by `penalty` where bool `seen[vocab]` is set."""
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalised, logits)


def output_penalties(logits: Tensor, counts: Tensor, presence: float, frequency: float) -> Tensor:
    """Subtract `frequency * counts + presence * (counts > 0)`; `counts[vocab]` of output tokens."""
    return logits - frequency * counts - presence * (counts > 0)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` largest logits, and all that equal the smallest of them."""
    if k >= logits.shape[-1]:
        return logits
    threshold = torch.topk(logits, k).values[-1]
    return logits.masked_fill(logits < threshold, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely tokens whose probabilities sum to at least `p`.

    A token stays while those before it, in descending order (the lower id first among equals),
    sum to less than `p`: so the most likely always stays.
    """
    if p >= 1:
        return logits
    probabilities = torch.softmax(logits, dim=-1)
    # All tokens below this sum to less than 1 - p (half of it, for rounding): never needed.
    negligible = (1 - p) / (2 * logits.shape[-1])
    candidates = torch.nonzero(probabilities >= negligible)[:, 0]
    values = probabilities[candidates]
    values, order = torch.sort(values, descending=True, stable=True)
    before = values.cumsum(dim=-1, dtype=torch.float64) - values
    kept = candidates[order[before < p]]
    filtered = torch.full_like(logits, -torch.inf)
    filtered[kept] = logits[kept]
    return filtered


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens whose probability is at least `p` times that of the most likely."""
    if p <= 0:
        return logits
    probabilities = torch.softmax(logits, dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.max(), -torch.inf)
