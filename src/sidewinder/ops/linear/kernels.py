"""Triton kernel of the product with one row; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import begin, put


@triton.jit
def row_product(
    x, weight, weight_row, bias, y, outputs, inputs,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_O outputs of one row of inputs.

    The first weights are asked for before the kernel waits for those that made its inputs.

    Floor: bytes, those of the weight.
    """
    o, i = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_I)
    some_o = o < outputs
    at = weight + o.to(tl.int64)[:, None] * weight_row + i[None, :]
    used = some_o[:, None] & (i < inputs)[None, :]
    w_i = tl.load(at, mask=used, other=0.0, eviction_policy="evict_first")
    begin(EARLY)
    total = tl.zeros([BLOCK_O, BLOCK_I], dtype=tl.float32)
    for base in range(0, inputs, BLOCK_I):
        x_i = tl.load(x + base + i, mask=base + i < inputs, other=0.0).to(tl.float32)
        w_now = w_i.to(tl.float32)
        at += BLOCK_I
        used = some_o[:, None] & (base + BLOCK_I + i < inputs)[None, :]
        w_i = tl.load(at, mask=used, other=0.0, eviction_policy="evict_first")
        total += w_now * x_i[None, :]
    out = tl.sum(total, 1)
    if bias is not None:
        out += tl.load(bias + o, mask=some_o, other=0.0).to(tl.float32)
    put(y + o, out, some_o)
