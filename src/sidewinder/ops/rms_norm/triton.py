"""The RMS norm in Triton: one program per row."""

import torch
from torch import Tensor

from sidewinder.ops.launching import early, launch, power_of_two
from sidewinder.ops.rms_norm import kernels


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """As `reference.rms_norm`; rows of up to 65536."""
    rows, width = x.shape
    for part in (x, residual):
        assert part is None or part.stride(1) == 1, "rows are contiguous"
    y = torch.empty(x.shape, dtype=x.dtype if weight is None else weight.dtype, device=x.device)
    total = None
    if residual is not None:
        total = torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    launch(
        kernels.normalise,
        (rows,),
        x, x.stride(0), weight, residual, 0 if residual is None else residual.stride(0), y, total,
        width, eps, BLOCK=power_of_two(width), num_warps=row_warps(width), **early(),
    )  # fmt: skip
    return y if total is None else (y, total)


def row_warps(width: int) -> int:
    """Warps for a program that holds a row: 16 elements a thread, up to 16 warps."""
    return power_of_two(width // 512, most=16)
