"""Triton kernel of a sum of two results; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import put, wait_for_inputs


@triton.jit
def add(
    x, x_row, y, y_row, total, width,
    BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of one row.

    Floor: bytes, those of x, y and total.
    """
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = c < width
    first = tl.load(x + row * x_row + c, mask=used, other=0.0).to(tl.float32)
    second = tl.load(y + row * y_row + c, mask=used, other=0.0).to(tl.float32)
    put(total + row * width + c, first + second, used)
