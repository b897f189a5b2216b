"""Triton kernels of products with one row and with a few; `triton.py` launches them."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import product, put, wait_for_inputs


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
    wait_for_inputs(EARLY)
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


@triton.jit
def few_rows_product(
    x, x_row, weight, weight_row, bias, y, rows, outputs, inputs,
    DOT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_O outputs of all rows (BLOCK_T at least), by matrix units.

    The first weights are asked for before the kernel waits for those that made its inputs.

    Floor: bytes, those of the weight; every program reads x from the second-level cache.
    """
    o, t = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_T)
    i = tl.arange(0, BLOCK_I)
    some_o, some_t = o < outputs, t < rows
    at = weight + o.to(tl.int64)[:, None] * weight_row + i[None, :]
    x_at = x + t.to(tl.int64)[None, :] * x_row + i[:, None]
    some_i = i < inputs
    w_i = tl.load(at, mask=some_o[:, None] & some_i[None, :], other=0.0)
    wait_for_inputs(EARLY)
    x_i = tl.load(x_at, mask=some_i[:, None] & some_t[None, :], other=0.0)
    total = product(w_i, x_i, DOT)
    for base in range(BLOCK_I, inputs, BLOCK_I):
        some_i = base + i < inputs
        w_i = tl.load(at + base, mask=some_o[:, None] & some_i[None, :], other=0.0)
        x_i = tl.load(x_at + base, mask=some_i[:, None] & some_t[None, :], other=0.0)
        total += product(w_i, x_i, DOT)
    if bias is not None:
        total += tl.load(bias + o, mask=some_o, other=0.0).to(tl.float32)[:, None]
    out_at = y + t.to(tl.int64)[None, :] * outputs + o[:, None]
    put(out_at, total, some_o[:, None] & some_t[None, :])
