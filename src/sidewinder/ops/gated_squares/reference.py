"""Gated values and their sum of squares: the definition."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_squares(
    x: Tensor, z: Tensor, weight: Tensor, norm_before_gate: bool = False
) -> tuple[Tensor, Tensor]:
    """`u = x * silu(z) * weight`, and per row the sum of squares of what the norm divides by.

    That is `x * silu(z)`, or x alone with `norm_before_gate` (`ops.gated_rms_norm`).

    Args:
        x, z: `[T, d]`; may be column slices (row stride ≥ d).
        weight: `[d]`.
        norm_before_gate: the authors' option.

    Returns:
        u `[T, d]`, contiguous, in x's dtype, and the sums `[T, 1]`, float32. Arithmetic is float32,
        u rounded once.
    """
    u = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    squares = torch.empty(x.shape[0], 1, device=x.device)
    for t in range(x.shape[0]):
        gated = x[t].float() * F.silu(z[t].float())
        squares[t] = (x[t].float() if norm_before_gate else gated).square().sum()
        u[t] = gated * weight.float()
    return u, squares
