"""Triton kernels of the codecs, bit for bit as `reference`; `triton.py` launches them.

`message` is the byte offset of a stripe's message, always even: payloads and scales that are two
bytes wide are addressed as halves of it. A group is handled as four quarters, since int4 and int6
pack elements of different quarters into one byte.

No step depends on how a compiler fuses multiplications: integers times scales are exact, and what
is rounded to an integer is clamped first.

Floors, all bytes: encode `rows * width * (b + bits / 8)` for itemsize b; reduce `(ranks + 1)` times
a message; decode `rows * width * (ranks * bits / 8 + b)`, and with residual and norm two more of
the residual's and one of y.
"""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import exact, nearest_bf16, put, rounded, widened

SMALLEST_SCALE = tl.constexpr(2.0**-126)
LARGEST_BF16 = tl.constexpr(3.3895313892515355e38)
INFINITY_BITS = tl.constexpr(0x7F800000)
NAN_HALF = tl.constexpr(0x7FC0)
TO_INTEGER = tl.constexpr(12582912.0)
"""1.5 * 2**23: adding and subtracting it rounds small float32 values to nearest even."""


@triton.jit
def decoded(parts, halves, message, group, e, payload_end, used, BITS: tl.constexpr):
    """float32 elements `e` of a message's groups."""
    if BITS == 16:
        at = halves + message // 2 + group * 32 + e
        value = widened(tl.load(at, mask=used, other=0))
    else:
        scale = widened(tl.load(halves + (message + payload_end) // 2 + group, mask=used, other=0))
        if BITS == 8:
            at = parts + message + group * 128 + e
            code = tl.load(at, mask=used, other=0).to(tl.int8, bitcast=True).to(tl.int32)
        else:
            payload = parts + message + group * (4 * BITS)
            code = tl.load(payload + e % 16, mask=used, other=0).to(tl.int32)
            code = (code >> (e // 16 * 4)) & 15
            if BITS == 6:
                high = tl.load(payload + 16 + e % 8, mask=used, other=0).to(tl.int32)
                code |= ((high >> (e // 8 * 2)) & 3) << 4
            code -= 1 << (BITS - 1)
        value = code.to(tl.float32) * scale
    return value


@triton.jit
def summed(
    parts, halves, message, rank_bytes, places, group, e, payload_end, used,
    BITS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """The sum of the same elements over ranks, in rank order.

    A rank's part is `rank_bytes` behind that of the rank before, or, if `places` is not None, so
    many bytes from `parts` as its entry there says.
    """
    total = decoded(
        parts, halves, message + place_of(places, 0, rank_bytes), group, e, payload_end, used, BITS
    )  # fmt: skip
    for rank in tl.static_range(1, RANKS):
        at = message + place_of(places, rank, rank_bytes)
        total += decoded(parts, halves, at, group, e, payload_end, used, BITS)
    return total


@triton.jit
def place_of(places, rank: tl.constexpr, rank_bytes):
    """Where a rank's part is, in bytes from the first one's, or from where `places` counts."""
    return rank * rank_bytes if places is None else tl.load(places + rank)


@triton.jit
def magnitude_bits(q):
    return q.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def is_extreme(q, largest):
    """Whether a group's quarter has a positive element of the largest magnitude."""
    return tl.max((q.to(tl.int32, bitcast=True) == largest[:, None]).to(tl.int32), 1)


@triton.jit
def integers(q, inverse, finite, BITS: tl.constexpr):
    """Elements over their scale, rounded and saturated; zeros where the group is not finite."""
    levels: tl.constexpr = 1 << (BITS - 1)
    value = tl.where(finite[:, None], q * inverse[:, None], 0.0)
    value = tl.minimum(tl.maximum(value, -levels), levels - 1)
    return ((value + TO_INTEGER) - TO_INTEGER).to(tl.int32)


@triton.jit
def write_groups(
    q0, q1, q2, q3, out, halves, message, group, payload_end, some, BITS: tl.constexpr
):  # fmt: skip
    """Encode groups, given as quarters `[groups, size / 4]` of float32, into their messages."""
    j = tl.arange(0, q0.shape[1])
    used = some[:, None]
    if BITS == 16:
        at = halves + (message // 2 + group * 32)[:, None] + j[None, :]
        tl.store(at, bf16_half(q0), mask=used)
        tl.store(at + 8, bf16_half(q1), mask=used)
        tl.store(at + 16, bf16_half(q2), mask=used)
        tl.store(at + 24, bf16_half(q3), mask=used)
    else:
        levels: tl.constexpr = 1 << (BITS - 1)
        largest = tl.maximum(
            tl.maximum(tl.max(magnitude_bits(q0), 1), tl.max(magnitude_bits(q1), 1)),
            tl.maximum(tl.max(magnitude_bits(q2), 1), tl.max(magnitude_bits(q3), 1)),
        )
        extreme = is_extreme(q0, largest) + is_extreme(q1, largest)
        extreme += is_extreme(q2, largest) + is_extreme(q3, largest)
        finite = largest < INFINITY_BITS
        scale = nearest_bf16(tl.where(finite, largest, 0).to(tl.float32, bitcast=True) / levels)
        scale = tl.minimum(tl.maximum(scale, SMALLEST_SCALE), LARGEST_BF16 / levels)
        scale = tl.where((extreme > 0) & (largest > 0), -scale, scale)
        half = scale.to(tl.int32, bitcast=True) >> 16
        half = tl.where(finite, half, NAN_HALF).to(tl.int16)
        tl.store(halves + (message + payload_end) // 2 + group, half, mask=some)
        inverse = tl.div_rn(1.0, scale)
        c0, c1 = integers(q0, inverse, finite, BITS), integers(q1, inverse, finite, BITS)
        c2, c3 = integers(q2, inverse, finite, BITS), integers(q3, inverse, finite, BITS)
        at = out + (message + group * payload_bytes(BITS))[:, None] + j[None, :]
        if BITS == 8:
            tl.store(at, (c0 & 255).to(tl.uint8), mask=used)
            tl.store(at + 32, (c1 & 255).to(tl.uint8), mask=used)
            tl.store(at + 64, (c2 & 255).to(tl.uint8), mask=used)
            tl.store(at + 96, (c3 & 255).to(tl.uint8), mask=used)
        else:
            c0, c1, c2, c3 = c0 + levels, c1 + levels, c2 + levels, c3 + levels
            tl.store(at, ((c0 & 15) | (c2 & 15) << 4).to(tl.uint8), mask=used)
            tl.store(at + 8, ((c1 & 15) | (c3 & 15) << 4).to(tl.uint8), mask=used)
            if BITS == 6:
                high = (c0 >> 4) | (c1 >> 4) << 2 | (c2 >> 4) << 4 | (c3 >> 4) << 6
                tl.store(at + 16, high.to(tl.uint8), mask=used)


@triton.jit
def payload_bytes(BITS: tl.constexpr):
    return 128 if BITS == 8 else 4 * BITS


@triton.jit
def bf16_half(x):
    """The 16 bits of `x` rounded to bfloat16."""
    bits = nearest_bf16(x).to(tl.int32, bitcast=True) >> 16
    return tl.where(x == x, bits, NAN_HALF).to(tl.int16)


@triton.jit
def input_quarter(x, x_row, n, quarter, rows, width, per_row, SIZE: tl.constexpr):
    """A quarter of groups `n` of `x`, zeros outside; float32 `[groups, SIZE / 4]`."""
    row, first = n // per_row, n % per_row * SIZE + quarter * (SIZE // 4)
    c = first[:, None] + tl.arange(0, SIZE // 4)[None, :]
    at = x + row.to(tl.int64)[:, None] * x_row + c
    return exact(tl.load(at, mask=(row < rows)[:, None] & (c < width), other=0.0))


@triton.jit
def encode(
    x, x_row, out, halves, rows, width, per_row, stripe_groups, n_groups, stripe_bytes, payload_end,
    BITS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK groups, numbered over all stripes."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    message = (n // stripe_groups).to(tl.int64) * stripe_bytes
    q0 = input_quarter(x, x_row, n, 0, rows, width, per_row, SIZE)
    q1 = input_quarter(x, x_row, n, 1, rows, width, per_row, SIZE)
    q2 = input_quarter(x, x_row, n, 2, rows, width, per_row, SIZE)
    q3 = input_quarter(x, x_row, n, 3, rows, width, per_row, SIZE)
    group = (n % stripe_groups).to(tl.int64)
    write_groups(q0, q1, q2, q3, out, halves, message, group, payload_end, n < n_groups, BITS)


@triton.jit
def reduce(
    parts, part_halves, places, first, out, out_halves, n_groups, n_bytes, payload_end,
    BITS: tl.constexpr, SIZE: tl.constexpr, RANKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK groups of one stripe, `first` bytes into each rank's part: decoded, summed over ranks,
    encoded again."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    some = n < n_groups
    used, group = some[:, None], n.to(tl.int64)
    message = group * 0
    m, g, rank_bytes = message[:, None] + first, group[:, None], n_bytes.to(tl.int64)
    e = tl.arange(0, SIZE // 4)[None, :]
    step: tl.constexpr = SIZE // 4
    q0 = summed(parts, part_halves, m, rank_bytes, places, g, e, payload_end, used, BITS, RANKS)
    e += step
    q1 = summed(parts, part_halves, m, rank_bytes, places, g, e, payload_end, used, BITS, RANKS)
    e += step
    q2 = summed(parts, part_halves, m, rank_bytes, places, g, e, payload_end, used, BITS, RANKS)
    e += step
    q3 = summed(parts, part_halves, m, rank_bytes, places, g, e, payload_end, used, BITS, RANKS)
    write_groups(q0, q1, q2, q3, out, out_halves, message, group, payload_end, some, BITS)


@triton.jit
def row_sum(
    parts, halves, places, first, row, c,
    width, per_row, stripe_groups, stripes, stripe_bytes, payload_end,
    BITS: tl.constexpr, SIZE: tl.constexpr, RANKS: tl.constexpr, BY_STRIPE: tl.constexpr,
):  # fmt: skip
    """The sum over ranks of columns `c` of a row; with BY_STRIPE every rank has one stripe of it,
    and there is nothing to add."""
    number = row * per_row + c // SIZE
    stripe, group = number // stripe_groups, number % stripe_groups
    used = c < width
    if BY_STRIPE:
        message = first + tl.load(places + stripe, mask=used, other=0)
        total = decoded(parts, halves, message, group, c % SIZE, payload_end, used, BITS)
    else:
        message = first + stripe * stripe_bytes
        rank_bytes = stripes.to(tl.int64) * stripe_bytes
        total = summed(
            parts, halves, message, rank_bytes, places, group, c % SIZE, payload_end, used,
            BITS, RANKS,
        )  # fmt: skip
    return total


@triton.jit(do_not_specialize=["stripes"])
def decode(
    parts, halves, places, first, out, out_row,
    width, per_row, stripe_groups, stripes, stripe_bytes, payload_end,
    BITS: tl.constexpr, SIZE: tl.constexpr, RANKS: tl.constexpr, BY_STRIPE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = row_sum(
        parts, halves, places, first, row, c,
        width, per_row, stripe_groups, stripes, stripe_bytes, payload_end,
        BITS, SIZE, RANKS, BY_STRIPE,
    )  # fmt: skip
    put(out + row * out_row + c, total, c < width)


@triton.jit(do_not_specialize=["stripes"])
def decode_normalise(
    parts, halves, places, first, residual, residual_row, weight, total, y, eps,
    width, per_row, stripe_groups, stripes, stripe_bytes, payload_end,
    KIND: tl.constexpr, BITS: tl.constexpr, SIZE: tl.constexpr, RANKS: tl.constexpr,
    BY_STRIPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: rounded to KIND, added to the residual, and normalised into y unless y is None."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    used = c < width
    delta = row_sum(
        parts, halves, places, first, row, c,
        width, per_row, stripe_groups, stripes, stripe_bytes, payload_end,
        BITS, SIZE, RANKS, BY_STRIPE,
    )  # fmt: skip
    delta = rounded(delta, KIND).to(tl.float32)
    delta = rounded(delta, residual.dtype.element_ty).to(tl.float32)
    added = tl.load(residual + row * residual_row + c, mask=used, other=0.0).to(tl.float32)
    value = rounded(delta + added, residual.dtype.element_ty)
    tl.store(total + row * width + c, value, mask=used)
    if y is not None:
        value = value.to(tl.float32)
        value *= 1.0 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
        if weight is not None:
            value *= tl.load(weight + c, mask=used, other=0.0).to(tl.float32)
        put(y + row * width + c, value, used)
