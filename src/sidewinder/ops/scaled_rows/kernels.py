"""Triton kernel of rows over the root of their mean square; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import exact, put, wait_for_inputs


@triton.jit
def scale(
    x, x_row, mean_squares, mean_squares_row, y, width, eps,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`BLOCK` elements of one row. Floor: bytes, those of x and y."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = c < width
    value = tl.load(x + row * x_row + c, mask=used, other=0.0).to(tl.float32)
    mean_square = 0.0
    for part in tl.static_range(PARTS):
        mean_square += exact(tl.load(mean_squares + row * mean_squares_row + part))
    put(y + row * width + c, value * tl.div_rn(1.0, tl.sqrt_rn(mean_square + eps)), used)
