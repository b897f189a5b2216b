"""The RMS norm of two tensors side by side in Triton: one program per row."""

import torch
from torch import Tensor

from sidewinder.ops.concat_rms_norm import kernels
from sidewinder.ops.launching import early, launch, power_of_two
from sidewinder.ops.rms_norm.triton import row_warps


def concat_rms_norm(
    x: Tensor, beside: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """As `reference.concat_rms_norm`; parts of up to 65536."""
    (rows, width), beside_width = x.shape, beside.shape[1]
    for part in (x, beside, residual):
        assert part is None or part.stride(1) == 1, "rows are contiguous"
    y = torch.empty(rows, width + beside_width, dtype=weight.dtype, device=x.device)
    total = None
    if residual is not None:
        total = torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    launch(
        kernels.normalise,
        (rows,),
        x, x.stride(0), beside, beside.stride(0), weight, residual,
        0 if residual is None else residual.stride(0), y, total, width, beside_width, eps,
        BLOCK=power_of_two(width), BESIDE=power_of_two(beside_width),
        num_warps=row_warps(width + beside_width), **early(),
    )  # fmt: skip
    return y if total is None else (y, total)
