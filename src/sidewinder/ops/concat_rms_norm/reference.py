"""The RMS norm of two tensors side by side: the definition."""

import torch
from torch import Tensor

from sidewinder.ops.rms_norm.reference import rms_norm


def concat_rms_norm(
    x: Tensor, beside: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """`rms_norm` of rows of `s = x + residual` followed by those of `beside`.

    Args:
        x: `[T, d]`; may be a column slice (row stride ≥ d).
        beside: `[T, e]`, the same.
        weight: `[d + e]`.
        eps: added to the mean square.
        residual: `[T, d]` or None. The sum is formed and returned in residual's dtype.

    Returns:
        `y` `[T, d + e]`, contiguous, in weight's dtype, or `(y, s)` if a residual is given.
        Arithmetic is float32, rounded once.
    """
    s = x if residual is None else x.to(residual.dtype) + residual
    y = rms_norm(torch.cat([s, beside], dim=-1), weight, eps)
    assert isinstance(y, Tensor), "no residual was given"
    return y if residual is None else (y, s)
