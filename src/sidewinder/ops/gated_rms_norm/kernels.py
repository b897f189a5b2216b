"""Triton kernel of the gated RMS norm; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import put, silu, wait_for_inputs


@triton.jit
def normalise(
    x, x_row, z, z_row, weight, y, width, group_size, eps,
    NORM_BEFORE_GATE: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One group of one row. Floor: bytes, those of x, z and y."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    used = i < group_size
    c = tl.program_id(1) * group_size + i
    scale = tl.load(weight + c, mask=used, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    value = tl.load(x + row * x_row + c, mask=used, other=0.0).to(tl.float32)
    gate = silu(tl.load(z + row * z_row + c, mask=used, other=0.0).to(tl.float32))
    if not NORM_BEFORE_GATE:
        value *= gate
    value *= 1.0 / tl.sqrt(tl.sum(value * value, 0) / group_size + eps)
    value *= scale
    if NORM_BEFORE_GATE:
        value *= gate
    put(y + row * width + c, value, used)
