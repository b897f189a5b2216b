"""Drawing tokens in fixed shapes and without looking at a value: what a CUDA graph can hold.

The same tokens as `Sampler.sample` draws where no row is adjusted (`reference.draw_row` is the
definition), at the price of sorting whole rows. A row without a finite largest logit gives -1
instead of an exception, which the host raises when it sees it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sidewinder.sampling import select
from sidewinder.sampling.draw import WEIGHT_SCALE
from sidewinder.sampling.finite import NOT_FINITE
from sidewinder.sampling.vocab_shard import VocabShard


@dataclass(frozen=True)
class DrawInputs:
    """How each row is drawn; all `[rows]` on the device.

    Attributes:
        temperature, min_p: float32; temperature is not 0, also where a row is greedy.
        top_p: float64.
        top_k: int64; 0 takes the most likely token, the vocabulary's size lets all count.
        high_bits, low_bits: int64, each 32 of the 64 uniform bits.
    """

    temperature: Tensor
    min_p: Tensor
    top_p: Tensor
    top_k: Tensor
    high_bits: Tensor
    low_bits: Tensor


def best_tokens(logits: Tensor, shard: VocabShard) -> Tensor:
    """The most likely token of each row, int64 `[rows]`, the same on all ranks.

    Args:
        logits: `[rows, vocab_local]`, this rank's columns.
        shard: which these are.
    """
    best, ids = select.first_max(logits.float())
    found = torch.stack([best.double(), (ids + shard.start).double()], -1)
    best, ids = shard.gather(found).unbind(-1)
    largest, rank = best.max(-1)
    tokens = ids.gather(1, rank[:, None])[:, 0].long()
    return torch.where(torch.isfinite(largest), tokens, NOT_FINITE)


def draw_tokens(logits: Tensor, shard: VocabShard, inputs: DrawInputs) -> Tensor:
    """A token of each row, int64 `[rows]`, the same on all ranks; arguments as `best_tokens`."""
    greedy = best_tokens(logits, shard)
    rows = shard.gather_columns(logits).float()
    ordered, ids = torch.sort(rows, dim=-1, descending=True, stable=True)
    drawn = _draw(ordered, ids, inputs)
    return torch.where((inputs.top_k == 0) | (greedy == NOT_FINITE), greedy, drawn)


def _draw(ordered: Tensor, ids: Tensor, inputs: DrawInputs) -> Tensor:
    """Draw from rows `[rows, vocab]` that fall, and the ids of their columns."""
    ratio = (ordered - ordered[:, :1]).div_(inputs.temperature[:, None]).exp_()
    filtered = torch.where(ratio < inputs.min_p[:, None], 0, ratio).mul_(WEIGHT_SCALE).long()
    last_of_k = (inputs.top_k - 1).clamp(0, ordered.shape[1] - 1)[:, None]
    in_k = ordered >= ordered.gather(1, last_of_k)
    weight = torch.where(in_k, ratio.mul_(WEIGHT_SCALE).long(), 0)
    cumulative = weight.cumsum(-1)
    reach = inputs.top_p * cumulative[:, -1].double()
    # With p = 1 rounding must not drop the last.
    within = (cumulative - weight).double() < reach[:, None]
    within |= inputs.top_p[:, None] >= 1
    kept = torch.where(within & in_k, filtered, 0)
    by_id = torch.zeros_like(kept).scatter_(1, ids, kept).cumsum_(-1)
    targets = high_product(inputs.high_bits, inputs.low_bits, by_id[:, -1])
    found = torch.searchsorted(by_id, targets[:, None], right=True)[:, 0]
    return found.clamp_(max=ordered.shape[1] - 1)


def high_product(high: Tensor, low: Tensor, total: Tensor) -> Tensor:
    """`((high · 2**32 + low) · total) >> 64`, exactly.

    Args:
        high, low: int64 `[rows]`, 32 bits each.
        total: int64 `[rows]`, not negative and below 2**62.
    """
    carry = _shifted_product(low, total, 0)
    return _shifted_product(high, total, carry)


def _shifted_product(factor: Tensor, total: Tensor, carry: Tensor | int) -> Tensor:
    """`(factor · total + carry) >> 32` in 64 bits: the low half of `total` in two halves."""
    upper, middle, lower = total >> 32, (total >> 16) & 0xFFFF, total & 0xFFFF
    # carry < 2**62 and the product < 2**48, so no sum overflows.
    rest = (factor * lower + carry) >> 16
    return factor * upper + ((factor * middle + rest) >> 16)


def split_bits(bits: int) -> tuple[int, int]:
    """The high and the low 32 of 64 bits."""
    return bits >> 32, bits & 0xFFFFFFFF
