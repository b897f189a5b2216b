"""The definition of every all-reduce: a sum in rank order, rounded once."""

import torch
from torch import Tensor


def sum_in_rank_order(parts: Tensor) -> Tensor:
    """Sum `parts` `[ranks, ...]` over ranks 0, 1, ..., in that order.

    16-bit floats are added in float32 and rounded once at the end, other dtypes in themselves, so
    the result depends on the values alone: not on who sums, nor on the size of the message.
    """
    wide = torch.float32 if parts.dtype in (torch.bfloat16, torch.float16) else parts.dtype
    total = parts[0].to(wide, copy=True)
    for part in parts[1:]:
        total += part
    return total.to(parts.dtype)
