"""Experts: the definition."""

import torch
from torch import Tensor

from sidewinder.ops.experts.matrices import ExpertMatrices
from sidewinder.ops.gated_activation.reference import gated_activation
from sidewinder.ops.linear.reference import linear


def experts(
    x: Tensor, matrices: ExpertMatrices, chosen: Tensor, shares: Tensor, activation: str
) -> Tensor:
    """`y[t] = sum over j of shares[t, j] * down[e] @ (act(gate[e] @ x[t]) * (up[e] @ x[t]))`, where
    `e = chosen[t, j]`. Without gates, each channel of `up` is its own.

    Args:
        x: `[T, d]`; may be a column slice (row stride ≥ d).
        matrices: of all experts.
        chosen, shares: int32 and float32 `[T, k]`, as `ops.route` returns them: the experts of a
            row are different.
        activation: one of `activations.ACTIVATIONS`.

    Returns:
        `[T, d]`, contiguous, in x's dtype. What goes into `down` is rounded to x's dtype; each
        product is rounded to it at most once, and the sum is float32.
    """
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for row, (of_row, parts) in enumerate(zip(chosen.tolist(), shares.tolist(), strict=True)):
        for expert, share in zip(of_row, parts, strict=True):
            up = linear(x[row : row + 1], matrices.up[expert])
            gate = up
            if matrices.gate is not None:
                gate = linear(x[row : row + 1], matrices.gate[expert])
            inner = gated_activation(gate, up, activation)
            y[row] += share * linear(inner, matrices.down[expert])[0].float()
    return y.to(x.dtype)
