"""Rows over the root of their mean square: the definition."""

import torch
from torch import Tensor


def scaled_rows(x: Tensor, mean_squares: Tensor, eps: float) -> Tensor:
    """`y[t] = x[t] / sqrt(sum(mean_squares[t]) + eps)`.

    Args:
        x: `[T, d]`; may be a column slice (row stride ≥ d).
        mean_squares: `[T, k]`, float32 or x's dtype: the parts of a row's mean square, such as
            ranks' (`ops.with_scalar`). May be a column slice. They are added from left to right.
        eps: added to the sum.

    Returns:
        `[T, d]`, contiguous, in x's dtype. Arithmetic is float32; x times the reciprocal root is
        rounded once.
    """
    mean_square = torch.zeros(x.shape[0], 1, device=x.device)
    for part in torch.split(mean_squares, 1, dim=1):
        mean_square += part.float()
    return (x.float() * torch.rsqrt(mean_square + eps)).to(x.dtype)
