"""Triton kernels of products with int8 weights; `int8.py` launches them.

Scales are in rows beside the weight's: one for each GROUP inputs of an output.
"""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import below_if, from_int8, product, put, wait_for_inputs

LANE = tl.constexpr(16)
"""Weights that a thread loads at once, 16 bytes; they share a scale."""


@triton.jit
def scaled_terms(w, x, scale):
    """Sums over a thread's LANE neighbours, times their scale."""
    return tl.sum(from_int8(w) * x.to(tl.float32), 2) * scale.to(tl.float32)


@triton.jit
def int8_row_product(
    x, weight, weight_row, scales, scales_row, bias, y, outputs, inputs,
    GROUP: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_O outputs of one row of inputs, in float32.

    A thread multiplies LANE neighbours by the inputs and their sum by the scale. Inputs are loaded
    for each output again, from the first-level cache: a tile of another shape would be spread over
    threads in another way, and exchanged.

    Floor: bytes, those of the weight and its scales.
    """
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    lane = LANE * tl.arange(0, BLOCK_I // LANE)
    i = lane[:, None] + tl.arange(0, LANE)[None, :]
    some_o = o < outputs
    at = weight + o.to(tl.int64)[:, None, None] * weight_row + i[None, :, :]
    scale_at = scales + o.to(tl.int64)[:, None] * scales_row + (lane // GROUP)[None, :]
    x_at = tl.broadcast_to(x + i[None, :, :], [BLOCK_O, BLOCK_I // LANE, LANE])
    used = some_o[:, None, None] & (i < inputs)[None, :, :]
    some = some_o[:, None] & (lane < inputs)[None, :]
    w = tl.load(at, mask=used, other=0, eviction_policy="evict_first")
    scale = tl.load(scale_at, mask=some, other=0.0)
    wait_for_inputs(EARLY)
    total = scaled_terms(w, tl.load(x_at, mask=used, other=0.0), scale)
    for base in range(BLOCK_I, inputs, BLOCK_I):
        used = some_o[:, None, None] & (base + i < inputs)[None, :, :]
        some = some_o[:, None] & (base + lane < inputs)[None, :]
        w = tl.load(at + base, mask=used, other=0, eviction_policy="evict_first")
        scale = tl.load(scale_at + base // GROUP, mask=some, other=0.0)
        total += scaled_terms(w, tl.load(x_at + base, mask=used, other=0.0), scale)
    out = tl.sum(total, 1)
    if bias is not None:
        out += tl.load(bias + o, mask=some_o, other=0.0).to(tl.float32)
    put(y + o, out, some_o)


@triton.jit
def scaled_products(
    at, scale_at, o, outputs, x_at, some_t, inputs,
    GROUP: tl.constexpr, DOT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Outputs `[BLOCK_O, BLOCK_T]` of the int8 rows at `at` and the rows of inputs at `x_at`, by
    matrix units: sums of a group, scaled in float32. Weights are exact in every DOT.

    The first weights are asked for before the wait for what made the inputs; scales, which are too
    small for copies into shared memory, while the group before theirs is multiplied.
    """
    i, some_o = tl.arange(0, GROUP), o < outputs
    w_at, x_at = at[:, None] + i[None, :], x_at[None, :] + i[:, None]
    some_i = i < inputs
    w = tl.load(w_at, mask=some_o[:, None] & some_i[None, :], other=0)
    scale = tl.load(scale_at, mask=some_o, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    x = tl.load(x_at, mask=some_i[:, None] & some_t[None, :], other=0.0)
    total = product(from_int8(w), x, DOT) * scale[:, None]
    next_scale = tl.load(scale_at + 1, mask=below_if(o, outputs, inputs > GROUP), other=0.0)
    for base in range(GROUP, inputs, GROUP):
        some_i = base + i < inputs
        w = tl.load(w_at + base, mask=some_o[:, None] & some_i[None, :], other=0)
        x = tl.load(x_at + base, mask=some_i[:, None] & some_t[None, :], other=0.0)
        scale = next_scale.to(tl.float32)
        later = below_if(o, outputs, base + GROUP < inputs)
        next_scale = tl.load(scale_at + base // GROUP + 1, mask=later, other=0.0)
        total += product(from_int8(w), x, DOT) * scale[:, None]
    return total


@triton.jit
def int8_product(
    x, x_row, weight, weight_row, scales, scales_row, bias, y, rows, outputs, inputs,
    GROUP: tl.constexpr, DOT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_O outputs of BLOCK_T rows.

    Floor: bytes, those of the weight, while rows are few; operations.
    """
    o, t = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_T)
    t += tl.program_id(1) * BLOCK_T
    some_o, some_t = o < outputs, t < rows
    at = weight + o.to(tl.int64) * weight_row
    scale_at = scales + o.to(tl.int64) * scales_row
    x_at = x + t.to(tl.int64) * x_row
    total = scaled_products(at, scale_at, o, outputs, x_at, some_t, inputs, GROUP, DOT, EARLY)
    if bias is not None:
        total += tl.load(bias + o, mask=some_o, other=0.0).to(tl.float32)[:, None]
    out_at = y + t.to(tl.int64)[None, :] * outputs + o[:, None]
    put(out_at, total, some_o[:, None] & some_t[None, :])


@triton.jit
def dequantise(
    weight, weight_row, scales, scales_row, wide, outputs, inputs,
    GROUP: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """BLOCK_O rows of BLOCK_I weights times their scales, rounded.

    Floor: bytes, of int8 read and of `wide` written.
    """
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    lane = tl.program_id(1) * BLOCK_I + LANE * tl.arange(0, BLOCK_I // LANE)
    i = lane[:, None] + tl.arange(0, LANE)[None, :]
    o_row, some_o = o.to(tl.int64), o < outputs
    used = some_o[:, None, None] & (i < inputs)[None, :, :]
    w = tl.load(weight + o_row[:, None, None] * weight_row + i[None, :, :], mask=used, other=0)
    scale_at = scales + o_row[:, None] * scales_row + (lane // GROUP)[None, :]
    some = some_o[:, None] & (lane < inputs)[None, :]
    scale = tl.load(scale_at, mask=some, other=0.0).to(tl.float32)
    wide_at = wide + o_row[:, None, None] * inputs + i[None, :, :]
    put(wide_at, from_int8(w) * scale[:, :, None], used)
