"""Rows over the root of their mean square in Triton: one program per row and block of columns."""

import torch
from torch import Tensor

from sidewinder.ops.launching import blocks, early, launch, power_of_two
from sidewinder.ops.rms_norm.triton import row_warps
from sidewinder.ops.scaled_rows import kernels

MOST_COLUMNS = 1024
"""Of a program: a single row is spread over several multiprocessors."""


def scaled_rows(x: Tensor, mean_squares: Tensor, eps: float) -> Tensor:
    """As `reference.scaled_rows`."""
    rows, width = x.shape
    parts = mean_squares.shape[1]
    assert x.stride(1) == 1, "rows are contiguous"
    assert parts == 1 or mean_squares.stride(1) == 1, "parts of a row are contiguous"
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = power_of_two(width, most=MOST_COLUMNS)
    launch(
        kernels.scale,
        (rows, blocks(width, block)),
        x, x.stride(0), mean_squares, mean_squares.stride(0), y, width, eps,
        PARTS=parts, BLOCK=block, num_warps=row_warps(block), **early(),
    )  # fmt: skip
    return y
