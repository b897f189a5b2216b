"""Triton kernel of a partial sum with a scalar; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import exact, rounded, wait_for_inputs


@triton.jit
def join(
    partial, partial_row, squares, squares_row, message, width, end, own, divisor,
    BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`BLOCK` elements of one row of `end`: of partial up to `width`, then zeros but for the
    scalar from `own` on. Floor: bytes, those of partial and message."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(partial + row * partial_row + c, mask=c < width, other=0.0)
    scalar = tl.div_rn(tl.load(squares + row * squares_row), divisor)
    kind: tl.constexpr = message.dtype.element_ty
    head = rounded(scalar, kind)
    value = tl.where(c == own, head, value)
    if kind != tl.float32:
        value = tl.where(c == own + 1, rounded(scalar - exact(head), kind), value)
    tl.store(message + row * end + c, value, mask=c < end)
