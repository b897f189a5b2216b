"""Triton kernel of the RMS norm of two tensors side by side; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import put, rounded, wait_for_inputs


@triton.jit
def normalise(
    x, x_row, beside, beside_row, weight, residual, residual_row, y, total,
    width, beside_width, eps,
    BLOCK: tl.constexpr, BESIDE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row: the sum with the residual, if there is one, rounded, and the norm of both parts.

    Floor: bytes, those of x, beside and y, and with a residual of it and the sum.
    """
    row = tl.program_id(0).to(tl.int64)
    c, b = tl.arange(0, BLOCK), tl.arange(0, BESIDE)
    used, some_b = c < width, b < beside_width
    scale = tl.load(weight + c, mask=used, other=0.0).to(tl.float32)
    scale_b = tl.load(weight + width + b, mask=some_b, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    value = tl.load(x + row * x_row + c, mask=used, other=0.0)
    other = tl.load(beside + row * beside_row + b, mask=some_b, other=0.0).to(tl.float32)
    if residual is not None:
        added = tl.load(residual + row * residual_row + c, mask=used, other=0.0)
        value = rounded(value.to(tl.float32), residual.dtype.element_ty)
        value = value.to(tl.float32) + added.to(tl.float32)
        value = rounded(value, residual.dtype.element_ty)
        tl.store(total + row * width + c, value, mask=used)
    value = value.to(tl.float32)
    squares = tl.sum(value * value, 0) + tl.sum(other * other, 0)
    root = 1.0 / tl.sqrt(squares / (width + beside_width) + eps)
    y_at = y + row * (width + beside_width)
    put(y_at + c, value * root * scale, used)
    put(y_at + width + b, other * root * scale_b, some_b)
