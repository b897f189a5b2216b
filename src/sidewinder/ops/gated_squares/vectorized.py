"""Gated values and their sum of squares in torch."""

import torch.nn.functional as F
from torch import Tensor


def gated_squares(
    x: Tensor, z: Tensor, weight: Tensor, norm_before_gate: bool = False
) -> tuple[Tensor, Tensor]:
    """As `reference.gated_squares`."""
    wide = x.float()
    gated = wide * F.silu(z.float())
    squares = (wide if norm_before_gate else gated).square().sum(-1, keepdim=True)
    return (gated * weight.float()).to(x.dtype), squares
