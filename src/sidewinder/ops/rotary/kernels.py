"""Triton kernel that turns queries and keys by their positions; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import put, wait_for_inputs


@triton.jit
def cos_sin(angle):
    """Of float32 angles up to 2^24, within 1e-7. (A GPU's own fast ones are for small angles.)

    In float64 the nearest multiple of a quarter turn is taken off, which leaves 2e-9 of error;
    polynomials do the rest.
    """
    precise = angle.to(tl.float64)
    quarters = tl.floor(precise * 0.6366197723675814 + 0.5)
    x = (precise - quarters * 1.5707963267948966).to(tl.float32)
    square = x * x
    series = -0.00019517224 * square + 0.008332178
    sine = x + x * square * (series * square - 0.16666655)
    series = 2.4438372e-05 * square - 0.0013887367
    cosine = 1.0 - 0.5 * square + square * square * (series * square + 0.041666646)
    turned = quarters.to(tl.int32)
    odd = (turned & 1) == 1
    cos = tl.where(odd, sine, cosine)
    sin = tl.where(odd, cosine, sine)
    return (
        tl.where(((turned + 1) & 2) == 2, -cos, cos),
        tl.where((turned & 2) == 2, -sin, sin),
    )


@triton.jit
def turn_heads(row, first_head, heads, cos, sin, j, width, pairs, BLOCK_H: tl.constexpr):
    """The pairs `j` of BLOCK_H heads of one row."""
    head = first_head + tl.arange(0, BLOCK_H)
    used = (head < heads)[:, None] & (j < pairs)[None, :]
    at = row + head[:, None] * width + j[None, :]
    first = tl.load(at, mask=used, other=0.0).to(tl.float32)
    second = tl.load(at + pairs, mask=used, other=0.0).to(tl.float32)
    put(at, first * cos[None, :] - second * sin[None, :], used)
    put(at + pairs, second * cos[None, :] + first * sin[None, :], used)


@triton.jit
def turn(
    q, q_row, heads, k, k_row, kv_heads, positions, step, frequencies, width, pairs,
    BLOCK_H: tl.constexpr, BLOCK_J: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_J pairs of BLOCK_H heads of one row: of q first, then of k.

    Floor: bytes, those of the turned channels, twice.
    """
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    j = tl.program_id(2) * BLOCK_J + tl.arange(0, BLOCK_J)
    position = tl.load(positions + row * step).to(tl.float32)
    cos, sin = cos_sin(position * tl.load(frequencies + j, mask=j < pairs, other=0.0))
    of_q = tl.cdiv(heads, BLOCK_H)
    if block < of_q:
        turn_heads(q + row * q_row, block * BLOCK_H, heads, cos, sin, j, width, pairs, BLOCK_H)
    else:
        first = (block - of_q) * BLOCK_H
        turn_heads(k + row * k_row, first, kv_heads, cos, sin, j, width, pairs, BLOCK_H)
