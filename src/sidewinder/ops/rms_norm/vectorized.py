"""Root-mean-square normalisation in torch."""

import torch
from torch import Tensor


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """As `reference.rms_norm`."""
    s = x if residual is None else x.to(residual.dtype) + residual
    wide = s.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = y.to(x.dtype) if weight is None else y.mul_(weight.float()).to(weight.dtype)
    return y if residual is None else (y, s)
