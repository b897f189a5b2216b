"""Triton kernel of a single token's scan from x_proj's output on; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.selective_scan.kernels import (
    channels_of,
    load_bias,
    load_rates,
    load_slot,
    next_token,
    store_slot,
)
from sidewinder.ops.triton_math import put, rounded, silu, softplus, wait_for_inputs


@triton.jit
def load_normed(at, i, SIZE: tl.constexpr, eps, NORMED: tl.constexpr):
    """`SIZE` values in float32, their RMS norm (rounded as it would be stored) if NORMED."""
    value = tl.load(at + i, mask=i < SIZE, other=0.0).to(tl.float32)
    if NORMED:
        value *= 1.0 / tl.sqrt(tl.sum(value * value, 0) / SIZE + eps)
        value = rounded(value, at.dtype.element_ty).to(tl.float32)
    return value


@triton.jit
def update(
    x, x_row, low, low_row, weight, weight_row, A, A_row, D, z, z_row, dt_bias,
    state, state_slot, state_row, slots, fresh, y, channels, eps,
    RANK: tl.constexpr, STATES: tl.constexpr, NORMED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EACH: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One token of one sequence: norms of dt, B, C, `dt_proj`, and the scan's step.

    Floor: bytes, those of dt_proj's weight and of the state, twice.
    """
    seq = tl.program_id(0)
    n, r = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_R)
    d = channels_of(tl.program_id(1), BLOCK_D, EACH)
    some_d = d < channels
    at = weight + d.to(tl.int64)[:, None] * weight_row + r[None, :]
    w = tl.load(at, mask=some_d[:, None] & (r < RANK)[None, :], other=0.0)
    slot, kept = tl.load(slots + seq), tl.load(fresh + seq) == 0
    h = load_slot(state, slot, state_slot, state_row, n, d, channels, kept, STATES)
    rates = load_rates(A, A_row, n, d, channels, STATES)
    bias = load_bias(dt_bias, d, some_d, BLOCK_D)
    skip = tl.load(D + d, mask=some_d, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    row = seq.to(tl.int64)
    low_at = low + row * low_row
    dt = load_normed(low_at, r, RANK, eps, NORMED)
    B_t = load_normed(low_at + RANK, n, STATES, eps, NORMED)
    C_t = load_normed(low_at + RANK + STATES, n, STATES, eps, NORMED)
    x_t = tl.load(x + row * x_row + d, mask=some_d, other=0.0).to(tl.float32)
    step = tl.sum(w.to(tl.float32) * dt[None, :], 1)
    delta = softplus(rounded(step, x.dtype.element_ty).to(tl.float32) + bias)
    h, out = next_token(h, delta, rates, B_t, C_t, x_t, skip)
    if z is not None:
        out *= silu(tl.load(z + row * z_row + d, mask=some_d, other=0.0).to(tl.float32))
    put(y + row * channels + d, out, some_d)
    store_slot(state, slot, state_slot, state_row, n, d, channels, h, STATES)
