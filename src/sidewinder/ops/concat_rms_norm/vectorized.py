"""The RMS norm of two tensors side by side in torch."""

import torch
from torch import Tensor

from sidewinder.ops.rms_norm import vectorized


def concat_rms_norm(
    x: Tensor, beside: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """As `reference.concat_rms_norm`."""
    s = x if residual is None else x.to(residual.dtype) + residual
    y = vectorized.rms_norm(torch.cat([s, beside], dim=-1), weight, eps)
    assert isinstance(y, Tensor), "no residual was given"
    return y if residual is None else (y, s)
