"""Mamba-2's gated, grouped RMS norm in torch."""

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
    """As `reference.gated_rms_norm`."""
    assert x.shape[1] % group_size == 0, "a norm group is cut between ranks"
    gate = F.silu(z.float())
    u = x.float() if norm_before_gate else x.float() * gate
    groups = u.view(u.shape[0], -1, group_size)
    normed = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)
    y = normed.flatten(1) * weight.float()
    return (y * gate if norm_before_gate else y).to(x.dtype)
