"""Mamba-2's gated, grouped RMS norm in Triton: one program per row and group."""

import torch
from torch import Tensor

from sidewinder.ops.gated_rms_norm import kernels
from sidewinder.ops.launching import early, launch, power_of_two
from sidewinder.ops.rms_norm.triton import row_warps


def gated_rms_norm(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool = False,
) -> Tensor:
    """As `reference.gated_rms_norm`; groups of up to 65536."""
    rows, width = x.shape
    assert width % group_size == 0, "a norm group is cut between ranks"
    assert x.stride(1) == z.stride(1) == 1, "rows are contiguous"
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(
        kernels.normalise,
        (rows, width // group_size),
        x, x.stride(0), z, z.stride(0), weight, y, width, group_size, eps,
        NORM_BEFORE_GATE=norm_before_gate, BLOCK=power_of_two(group_size),
        num_warps=row_warps(group_size), **early(),
    )  # fmt: skip
    return y
