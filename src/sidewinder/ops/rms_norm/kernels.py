"""Triton kernel of the RMS norm; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import put, rounded, wait_for_inputs


@triton.jit
def normalise(
    x, x_row, weight, residual, residual_row, y, total, width, eps,
    BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row: the sum with the residual, if there is one, rounded, and its norm.

    Floor: bytes, those of x, y, and with a residual of it and the sum.
    """
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    used = c < width
    scale = tl.full([BLOCK], 1.0, dtype=tl.float32)
    if weight is not None:
        scale = tl.load(weight + c, mask=used, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    value = tl.load(x + row * x_row + c, mask=used, other=0.0)
    if residual is not None:
        added = tl.load(residual + row * residual_row + c, mask=used, other=0.0)
        value = rounded(value.to(tl.float32), residual.dtype.element_ty)
        value = value.to(tl.float32) + added.to(tl.float32)
        value = rounded(value, residual.dtype.element_ty)
        tl.store(total + row * width + c, value, mask=used)
    value = value.to(tl.float32)
    value *= 1.0 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    value *= scale
    put(y + row * width + c, value, used)
