"""Triton kernel of a gated MLP's activation; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import LOG2_E, exp2, put, reciprocal, silu, wait_for_inputs


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """The activation of that name, of float32 values."""
    if ACTIVATION == "gelu":
        y = x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # 1 + tanh(u) is twice the sigmoid of 2 u.
        twice = x * (1.0 + 0.044715 * x * x) * (2.0 * 0.7978845608028654)
        y = x * reciprocal(1.0 + exp2(twice * -LOG2_E))
    elif ACTIVATION == "relu":
        y = tl.where(x < 0.0, 0.0, x)  # NaN stays NaN.
    else:
        tl.static_assert(ACTIVATION == "silu")
        y = silu(x)
    return y


@triton.jit
def gate_by(
    gate, gate_row, up, up_row, y, width,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of one row.

    Floor: bytes, those of gate, up and y.
    """
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = c < width
    opened = tl.load(gate + row * gate_row + c, mask=used, other=0.0).to(tl.float32)
    value = tl.load(up + row * up_row + c, mask=used, other=0.0).to(tl.float32)
    put(y + row * width + c, activated(opened, ACTIVATION) * value, used)
