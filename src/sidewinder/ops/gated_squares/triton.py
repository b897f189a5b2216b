"""Gated values and their sum of squares in Triton: one program per row."""

import torch
from torch import Tensor

from sidewinder.ops.gated_squares import kernels
from sidewinder.ops.launching import early, launch, power_of_two
from sidewinder.ops.rms_norm.triton import row_warps


def gated_squares(
    x: Tensor, z: Tensor, weight: Tensor, norm_before_gate: bool = False
) -> tuple[Tensor, Tensor]:
    """As `reference.gated_squares`; rows of up to 65536."""
    rows, width = x.shape
    assert x.stride(1) == z.stride(1) == 1, "rows are contiguous"
    u = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    squares = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    launch(
        kernels.gate,
        (rows,),
        x, x.stride(0), z, z.stride(0), weight, u, squares, width,
        NORM_BEFORE_GATE=norm_before_gate, BLOCK=power_of_two(width),
        num_warps=row_warps(width), **early(),
    )  # fmt: skip
    return u, squares
