"""A partial sum with a scalar in Triton: one program per row and block of columns."""

import torch
from torch import Tensor

from sidewinder.ops.launching import blocks, early, launch, power_of_two
from sidewinder.ops.rms_norm.triton import row_warps
from sidewinder.ops.scaled_rows.triton import MOST_COLUMNS
from sidewinder.ops.with_scalar import kernels
from sidewinder.ops.with_scalar.reference import scalar_columns


def with_scalar(partial: Tensor, squares: Tensor, divisor: float, rank: int, ranks: int) -> Tensor:
    """As `reference.with_scalar`."""
    rows, width = partial.shape
    assert partial.stride(1) == 1, "rows are contiguous"
    columns = scalar_columns(partial.dtype, ranks)
    end, own = width + columns, width + (0 if columns == 1 else 2 * rank)
    message = torch.empty(rows, end, dtype=partial.dtype, device=partial.device)
    block = power_of_two(end, most=MOST_COLUMNS)
    launch(
        kernels.join,
        (rows, blocks(end, block)),
        partial, partial.stride(0), squares, squares.stride(0), message, width, end, own,
        float(divisor), BLOCK=block, num_warps=row_warps(block), **early(),
    )  # fmt: skip
    return message
