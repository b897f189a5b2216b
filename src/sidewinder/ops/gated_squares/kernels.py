"""Triton kernel of the gate before a norm that spans ranks; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import put, silu, wait_for_inputs


@triton.jit
def gate(
    x, x_row, z, z_row, weight, u, squares, width,
    NORM_BEFORE_GATE: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row: its gated values, and the sum of squares of what the norm divides by.

    Floor: bytes, those of x, z and u.
    """
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    used = c < width
    value = tl.load(x + row * x_row + c, mask=used, other=0.0).to(tl.float32)
    gated = value * silu(tl.load(z + row * z_row + c, mask=used, other=0.0).to(tl.float32))
    if not NORM_BEFORE_GATE:
        value = gated
    tl.store(squares + row, tl.sum(value * value, 0))
    gated *= tl.load(weight + c, mask=used, other=0.0).to(tl.float32)
    put(u + row * width + c, gated, used)
