"""Sampling by its definition, one row at a time in Python integers: what `draw` must equal."""

import torch
from torch import Tensor

from sidewinder.sampling.draw import weights
from sidewinder.sampling.params import SamplingParams


def kept_weights(logits: Tensor, params: SamplingParams) -> dict[int, int]:
    """Token to integer weight of what temperature, top-k, top-p and min-p leave of one row.

    Tokens are ordered by falling logit, then by rising id. Top-k keeps the first `top_k` and those
    that equal the last of them; top-p keeps a token while the tokens before it sum to less than
    `top_p` of what top-k left; min-p keeps what is at least `min_p` times as likely as the first.

    Args:
        logits: float32 `[vocab]`.
        params: not greedy; penalties are not applied here.
    """
    values = logits.tolist()
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))
    if params.top_k and params.top_k < len(order):
        last = values[order[params.top_k - 1]]
        order = [token for token in order if values[token] >= last]
    plain, filtered = _weights(logits, params, 0.0), _weights(logits, params, params.min_p or 0.0)
    top_p = params.top_p or 1.0
    reach = top_p * float(sum(plain[token] for token in order))
    kept, before = {}, 0
    for token in order:
        if top_p < 1 and float(before) >= reach:
            break
        before += plain[token]
        kept[token] = filtered[token]
    return {token: weight for token, weight in kept.items() if weight}


def draw_row(logits: Tensor, params: SamplingParams, bits: int) -> int:
    """The token at `bits / 2**64` of the cumulative distribution, tokens in order of id."""
    kept = sorted(kept_weights(logits, params).items())
    target = (bits * sum(weight for _, weight in kept)) >> 64
    for token, weight in kept:
        if target < weight:
            return token
        target -= weight
    raise AssertionError("the target lies within the sum")


def _weights(logits: Tensor, params: SamplingParams, min_p: float) -> list[int]:
    assert params.temperature is not None
    row, best = logits[None], logits.max()[None]
    found = weights(row, best, torch.tensor([params.temperature]), torch.tensor([min_p]))
    whole: list[int] = found[0].tolist()
    return whole
