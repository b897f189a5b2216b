"""A router of experts: the definition."""

import math

import torch
from torch import Tensor

from sidewinder.model_config import RouterConfig

LEAST_SUM = 1e-20
"""Added to the sum that shares are divided by: scores of zero only have shares of zero."""


def route(
    x: Tensor, weight: Tensor, bias: Tensor | None, config: RouterConfig
) -> tuple[Tensor, Tensor]:
    """The experts with the highest scores, and their shares.

    A score is the softmax (over all experts) or the sigmoid of `weight[e] @ x[t]`. Experts are
    chosen by score plus `bias`; where they come in groups, among those of the groups whose best two
    have the largest sums. A share is a chosen expert's score without the bias, divided by the sum
    of the chosen ones' where `config.normalised`, times `config.scale`.

    Args:
        x: `[T, d]`; may be a column slice (row stride ≥ d).
        weight: float32 `[E, d]`.
        bias: float32 `[E]` or None.
        config: how to choose.

    Returns:
        `chosen` int32 `[T, k]` in falling order of what they were chosen by (equal ones by number),
        and `shares` float32 `[T, k]`. Arithmetic is float32.
    """
    chosen, shares = [], []
    for row in x.float():
        scores = _scores((weight * row).sum(-1), config)
        rank_by = (scores if bias is None else scores + bias).tolist()
        for expert in _outside(rank_by, config):
            rank_by[expert] = -math.inf
        best = _highest(rank_by, config.n_chosen)
        of_row = scores[best]
        if config.normalised:
            of_row = of_row / (of_row.sum() + LEAST_SUM)
        chosen.append(best)
        shares.append(of_row * config.scale)
    if not chosen:
        return (
            torch.empty(0, config.n_chosen, dtype=torch.int32),
            torch.empty(0, config.n_chosen),
        )
    return torch.tensor(chosen, dtype=torch.int32), torch.stack(shares)


def _scores(logits: Tensor, config: RouterConfig) -> Tensor:
    return logits.softmax(-1) if config.scores == "softmax" else logits.sigmoid()


def _outside(rank_by: list[float], config: RouterConfig) -> list[int]:
    """Experts of groups that are out of question."""
    width = len(rank_by) // config.n_groups
    groups = [range(group * width, (group + 1) * width) for group in range(config.n_groups)]
    sums = [sum(sorted((rank_by[e] for e in group), reverse=True)[:2]) for group in groups]
    inside = _highest(sums, config.n_groups_chosen)
    return [e for number, group in enumerate(groups) if number not in inside for e in group]


def _highest(values: list[float], n: int) -> list[int]:
    """Where the `n` highest are; of equal ones the first."""
    return sorted(range(len(values)), key=values.__getitem__, reverse=True)[:n]
