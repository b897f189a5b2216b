"""Triton kernels of products with weights in 8 or 4 bits; `integer.py` launches them.

Weights are bytes in rows, as `QuantisedWeight.values` has them: of 8 bits one input after the
other; of 4 bits 32 inputs in 16 bytes, the first 16 in lower halves, the others in upper ones.
Scales are in rows beside them: one for each GROUP inputs of an output.
"""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import (
    columns,
    from_int4,
    from_int8,
    product,
    put,
    wait_for_inputs,
)

LANE = tl.constexpr(16)
"""Bytes that a thread loads at once; their weights share a scale."""


@triton.jit
def bytes_of(inputs, BITS: tl.constexpr):
    """Of a row of so many weights."""
    return inputs if BITS == 8 else tl.cdiv(inputs, 2 * LANE) * LANE


@triton.jit
def unpacked(w, kind: tl.constexpr, BITS: tl.constexpr):
    """Weights of bytes, exactly: a tuple of one tile; of 4 bits two, of inputs LANE apart."""
    return (from_int8(w),) if BITS == 8 else from_int4(w, kind)


@triton.jit
def lane_inputs(x, i, inputs, BITS: tl.constexpr):
    """In float32, a tuple of tiles as `unpacked` has weights."""
    found = ()
    for half in tl.static_range(8 // BITS):
        here = i + half * LANE
        found = found + (tl.load(x + here, mask=here < inputs, other=0.0).to(tl.float32),)
    return found


@triton.jit
def lane_weights(at, scale_at, row, scales_row, o, outputs, used, some, EACH: tl.constexpr):
    """A thread's bytes of each of its outputs, and their scales: two tuples."""
    w, scales = (), ()
    BLOCK_O: tl.constexpr = o.shape[0]
    for k in tl.static_range(EACH):
        some_o, further = o + k * BLOCK_O < outputs, k * BLOCK_O
        mask = some_o[:, None, None] & used
        w = w + (tl.load(at + further * row, mask=mask, other=0, eviction_policy="evict_first"),)
        mask = some_o[:, None] & some
        scales = scales + (tl.load(scale_at + further * scales_row, mask=mask, other=0.0),)
    return w, scales


@triton.jit
def lane_terms(w, scales, x, BITS: tl.constexpr, EACH: tl.constexpr):
    """Sums over a thread's bytes of each of its outputs, times their scale."""
    found = ()
    for k in tl.static_range(EACH):
        weights = unpacked(w[k], tl.float32, BITS)
        total = tl.sum(weights[0] * x[0], 2)
        if BITS == 4:
            total += tl.sum(weights[1] * x[1], 2)
        found = found + (total * scales[k].to(tl.float32),)
    return found


@triton.jit
def row_terms(
    weight, weight_row, scales, scales_row, x, o, outputs, inputs,
    GROUP: tl.constexpr, BITS: tl.constexpr, EACH: tl.constexpr, BLOCK_I: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Terms of EACH times as many outputs of one row `x` as `o` has, in float32: a tuple of
    `[BLOCK_O, lanes]`, to be added up; output `o + k * BLOCK_O` is at `k`.

    A thread multiplies its bytes of each of its outputs by inputs that it loads and converts once.
    Where outputs lie side by side in a tile, inputs are loaded for each of them again, from the
    first-level cache: a tile of another shape would be spread over threads in another way, and
    exchanged.
    """
    BLOCK_O: tl.constexpr = o.shape[0]
    LANES: tl.constexpr = BLOCK_I * BITS // 8 // LANE
    lane, n_bytes = tl.arange(0, LANES) * LANE, bytes_of(inputs, BITS)
    byte = lane[:, None] + tl.arange(0, LANE)[None, :]
    group = (lane * (8 // BITS) // GROUP)[None, :]
    i = (lane * (8 // BITS))[:, None] + tl.arange(0, LANE)[None, :]
    i = tl.broadcast_to(i[None, :, :], [BLOCK_O, LANES, LANE])
    at = weight + o.to(tl.int64)[:, None, None] * weight_row + byte[None, :, :]
    scale_at = scales + o.to(tl.int64)[:, None] * scales_row + group
    used, some = (byte < n_bytes)[None, :, :], (lane < n_bytes)[None, :]
    w, scale = lane_weights(at, scale_at, weight_row, scales_row, o, outputs, used, some, EACH)
    wait_for_inputs(EARLY)
    total = lane_terms(w, scale, lane_inputs(x, i, inputs, BITS), BITS, EACH)
    for base in range(BLOCK_I, inputs, BLOCK_I):
        first = base * BITS // 8
        used, some = (first + byte < n_bytes)[None, :, :], (first + lane < n_bytes)[None, :]
        w, scale = lane_weights(
            at + first, scale_at + base // GROUP, weight_row, scales_row, o, outputs, used, some,
            EACH,
        )  # fmt: skip
        more = lane_terms(w, scale, lane_inputs(x, base + i, inputs, BITS), BITS, EACH)
        added = ()
        for k in tl.static_range(EACH):
            added = added + (total[k] + more[k],)
        total = added
    return total


@triton.jit
def integer_row_product(
    x, weight, weight_row, scales, scales_row, bias, y, outputs, inputs,
    GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_O: tl.constexpr, EACH: tl.constexpr,
    BLOCK_I: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """EACH times BLOCK_O outputs of one row of inputs.

    The first weights are asked for before the kernel waits for those that made its inputs.

    Floor: bytes, those of the weight and its scales.
    """
    o = tl.program_id(0) * (BLOCK_O * EACH) + tl.arange(0, BLOCK_O)
    terms = row_terms(
        weight, weight_row, scales, scales_row, x, o, outputs, inputs,
        GROUP, BITS, EACH, BLOCK_I, EARLY,
    )  # fmt: skip
    for k in tl.static_range(EACH):
        here, out = o + k * BLOCK_O, tl.sum(terms[k], 1)
        if bias is not None:
            out += tl.load(bias + here, mask=here < outputs, other=0.0).to(tl.float32)
        put(y + here, out, here < outputs)


@triton.jit
def with_product(total, w, x, scales, DOT: tl.constexpr, BITS: tl.constexpr, GROUPS: tl.constexpr):
    """`total` `[BLOCK_O, BLOCK_T]` and the sums of each of a tile's groups, scaled in float32."""
    w, x, scales = columns(w, GROUPS), columns(x, GROUPS * (8 // BITS)), columns(scales, GROUPS)
    for g in tl.static_range(GROUPS):
        weights = unpacked(w[g], DOT, BITS)
        if BITS == 8:
            sums = product(weights[0], tl.trans(x[g]), DOT)
        else:
            sums = product(weights[0], tl.trans(x[2 * g]), DOT)
            sums += product(weights[1], tl.trans(x[2 * g + 1]), DOT)
        total += sums * scales[g].to(tl.float32)
    return total


@triton.jit
def scaled_products(
    weight, weight_row, scales, scales_row, o, outputs, x_at, some_t, inputs,
    GROUP: tl.constexpr, BITS: tl.constexpr, GROUPS: tl.constexpr, DOT: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Outputs `o`, `[BLOCK_O, BLOCK_T]`, of the rows of inputs at `x_at`, by matrix units: sums of
    a group, scaled in float32. Weights are exact in every DOT. Of 4 bits blocks of 32 inputs stand
    for groups, which may be larger; a tile has GROUPS of them, to load rows by whole sectors.

    The first weights are asked for before the wait for what made the inputs; scales, which are too
    small for copies into shared memory, while the groups before theirs are multiplied.
    """
    SUM: tl.constexpr = GROUP if BITS == 8 else 2 * LANE
    BLOCK_I: tl.constexpr = GROUPS * SUM
    i, g, n_bytes = tl.arange(0, BLOCK_I), tl.arange(0, GROUPS), bytes_of(inputs, BITS)
    byte, some_o = tl.arange(0, BLOCK_I * BITS // 8), o < outputs
    w_at = weight + o.to(tl.int64)[:, None] * weight_row + byte[None, :]
    scale_at = scales + o.to(tl.int64)[:, None] * scales_row
    x_at = x_at[:, None] + i[None, :]
    w = tl.load(w_at, mask=some_o[:, None] & (byte < n_bytes)[None, :], other=0)
    mask = some_o[:, None] & (g * SUM < inputs)[None, :]
    scale = tl.load(scale_at + (g * SUM // GROUP)[None, :], mask=mask, other=0.0)
    wait_for_inputs(EARLY)
    x = tl.load(x_at, mask=some_t[:, None] & (i < inputs)[None, :], other=0.0)
    total = tl.zeros([w.shape[0], x.shape[0]], dtype=tl.float32)
    total = with_product(total, w, x, scale, DOT, BITS, GROUPS)
    start = BLOCK_I + g * SUM
    mask = some_o[:, None] & (start < inputs)[None, :]
    next_scale = tl.load(scale_at + (start // GROUP)[None, :], mask=mask, other=0.0)
    for base in range(BLOCK_I, inputs, BLOCK_I):
        first = base * BITS // 8
        mask = some_o[:, None] & (first + byte < n_bytes)[None, :]
        w = tl.load(w_at + first, mask=mask, other=0)
        x = tl.load(x_at + base, mask=some_t[:, None] & (base + i < inputs)[None, :], other=0.0)
        scale = next_scale
        start = base + BLOCK_I + g * SUM
        mask = some_o[:, None] & (start < inputs)[None, :]
        next_scale = tl.load(scale_at + (start // GROUP)[None, :], mask=mask, other=0.0)
        total = with_product(total, w, x, scale, DOT, BITS, GROUPS)
    return total


@triton.jit
def integer_product(
    x, x_row, weight, weight_row, scales, scales_row, bias, y, rows, outputs, inputs,
    GROUP: tl.constexpr, BITS: tl.constexpr, GROUPS: tl.constexpr, DOT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_O outputs of BLOCK_T rows.

    Floor: bytes, those of the weight, while rows are few; operations.
    """
    o, t = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_T)
    t += tl.program_id(1) * BLOCK_T
    some_o, some_t = o < outputs, t < rows
    total = scaled_products(
        weight, weight_row, scales, scales_row, o, outputs, x + t.to(tl.int64) * x_row, some_t,
        inputs, GROUP, BITS, GROUPS, DOT, EARLY,
    )  # fmt: skip
    if bias is not None:
        total += tl.load(bias + o, mask=some_o, other=0.0).to(tl.float32)[:, None]
    out_at = y + t.to(tl.int64)[None, :] * outputs + o[:, None]
    put(out_at, total, some_o[:, None] & some_t[None, :])


@triton.jit
def dequantise(
    weight, weight_row, scales, scales_row, wide, outputs, inputs,
    GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """BLOCK_O rows of BLOCK_B bytes of weights times their scales, rounded.

    Floor: bytes, of integers read and of `wide` written.
    """
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    lane = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B // LANE) * LANE
    byte = lane[:, None] + tl.arange(0, LANE)[None, :]
    o_row, some_o, n_bytes = o.to(tl.int64), o < outputs, bytes_of(inputs, BITS)
    used = some_o[:, None, None] & (byte < n_bytes)[None, :, :]
    w = tl.load(weight + o_row[:, None, None] * weight_row + byte[None, :, :], mask=used, other=0)
    first = lane * (8 // BITS)
    scale_at = scales + o_row[:, None] * scales_row + (first // GROUP)[None, :]
    some = some_o[:, None] & (lane < n_bytes)[None, :]
    scale = tl.load(scale_at, mask=some, other=0.0).to(tl.float32)
    weights = unpacked(w, tl.float32, BITS)
    for half in tl.static_range(8 // BITS):
        i = first[:, None] + half * LANE + tl.arange(0, LANE)[None, :]
        wide_at = wide + o_row[:, None, None] * inputs + i[None, :, :]
        used = some_o[:, None, None] & (i < inputs)[None, :, :]
        put(wide_at, weights[half] * scale[:, :, None], used)
