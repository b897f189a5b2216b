"""Mamba-2's gated, grouped RMS norm: the definition."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_rms_norm(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool = False,
) -> Tensor:
    """Normalise each group of channels on its own, gated before (the default) or after.

    Gate first: `u = x * silu(z)`, `y = weight * u / rms(u)`.
    Norm first: `y = weight * x / rms(x) * silu(z)`.
    Here `rms(u) = sqrt(mean(u²) + eps)` over the group's channels.

    Args:
        x, z: `[T, d]`; may be column slices (row stride ≥ d).
        weight: `[d]`.
        eps: added to the mean square.
        group_size: channels per group, the model's global one; divides d (groups are whole here).
        norm_before_gate: the authors' option.

    Returns:
        `[T, d]`, contiguous, in x's dtype. Arithmetic is float32, rounded once.
    """
    assert x.shape[1] % group_size == 0, "a norm group is cut between ranks"
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for t in range(x.shape[0]):
        gate = F.silu(z[t].float())
        u = x[t].float() if norm_before_gate else x[t].float() * gate
        groups = u.view(-1, group_size)
        normed = groups / torch.sqrt(groups.square().mean(-1, keepdim=True) + eps)
        row = normed.reshape(-1) * weight.float()
        y[t] = row * gate if norm_before_gate else row
    return y
