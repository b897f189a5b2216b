"""Root-mean-square normalisation, with the residual sum before it: the definition."""

import torch
from torch import Tensor


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """`y = weight * s / sqrt(mean(s²) + eps)` for each row, with `s = x + residual`.

    Args:
        x: `[T, d]`; may be a column slice (row stride ≥ d).
        weight: `[d]`, or None for a weightless norm.
        eps: added to the mean square.
        residual: `[T, d]` or None. The sum is formed and returned in residual's dtype, which may be
            wider than x's (a float32 residual stream).

    Returns:
        `y` `[T, d]`, contiguous, in weight's dtype (x's without a weight), or `(y, s)` if a
        residual is given. Arithmetic is float32, rounded once.
    """
    rows, sums = [], []
    for t in range(x.shape[0]):
        s = x[t] if residual is None else x[t].to(residual.dtype) + residual[t]
        normed = s.float() / torch.sqrt(s.float().square().mean() + eps)
        rows.append(normed if weight is None else normed * weight.float())
        sums.append(s)
    y = torch.stack(rows).to(x.dtype if weight is None else weight.dtype)
    return y if residual is None else (y, torch.stack(sums))
