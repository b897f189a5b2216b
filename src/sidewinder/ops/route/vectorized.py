"""A router of experts by torch's own functions; all of fixed shape, so that a graph can hold it."""

import math

import torch
from torch import Tensor

from sidewinder.model_config import RouterConfig
from sidewinder.ops.route.reference import LEAST_SUM


def route(
    x: Tensor, weight: Tensor, bias: Tensor | None, config: RouterConfig
) -> tuple[Tensor, Tensor]:
    """As `reference.route`; equal scores come in any order."""
    return choose(torch.mm(x.float(), weight.T), bias, config)


def choose(logits: Tensor, bias: Tensor | None, config: RouterConfig) -> tuple[Tensor, Tensor]:
    """The route by its logits, float32 `[T, E]`."""
    scores = logits.softmax(-1) if config.scores == "softmax" else logits.sigmoid()
    rank_by = scores if bias is None else scores + bias
    if config.n_groups > 1:
        rank_by = rank_by.masked_fill(_outside(rank_by, config), -math.inf)
    chosen = rank_by.topk(config.n_chosen, dim=-1).indices
    shares = scores.gather(1, chosen)
    if config.normalised:
        shares = shares / (shares.sum(-1, keepdim=True) + LEAST_SUM)
    return chosen.int(), shares * config.scale


def _outside(rank_by: Tensor, config: RouterConfig) -> Tensor:
    """Whether an expert's group is out of question, `[T, E]`."""
    rows, n_experts = rank_by.shape
    by_group = rank_by.view(rows, config.n_groups, n_experts // config.n_groups)
    sums = by_group.topk(min(2, by_group.shape[-1]), dim=-1).values.sum(-1)
    outside = torch.ones_like(sums, dtype=torch.bool)
    outside.scatter_(1, sums.topk(config.n_groups_chosen, dim=-1).indices, False)
    return outside[:, :, None].expand_as(by_group).reshape(rank_by.shape)
