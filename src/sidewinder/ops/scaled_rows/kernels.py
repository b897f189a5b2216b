"""Triton kernel of rows times a factor each; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import begin, put


@triton.jit
def scale(
    x, x_row, factor, factor_row, y, width, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`BLOCK` elements of one row. Floor: bytes, those of x and y."""
    begin(EARLY)
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = c < width
    value = tl.load(x + row * x_row + c, mask=used, other=0.0).to(tl.float32)
    value *= tl.load(factor + row * factor_row)
    put(y + row * width + c, value, used)
