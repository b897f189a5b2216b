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
def load_low(at, i, SIZE: tl.constexpr):
    """`SIZE` values in float32."""
    return tl.load(at + i, mask=i < SIZE, other=0.0).to(tl.float32)


@triton.jit
def normed(value, gain, SIZE: tl.constexpr, eps, KIND: tl.constexpr):
    """The RMS norm of `SIZE` values, rounded as it would be stored, in float32."""
    value *= gain / tl.sqrt(tl.sum(value * value, 0) / SIZE + eps)
    return rounded(value, KIND).to(tl.float32)


@triton.jit
def update(
    x, x_row, low, low_row, norm_weight, weight, weight_row, A, A_row, D, z, z_row, dt_bias,
    state, state_slot, state_row, slots, fresh, y, y_row, channels, eps,
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
    dt_gain, B_gain, C_gain = 1.0, 1.0, 1.0
    if norm_weight is not None:
        dt_gain = load_low(norm_weight, r, RANK)
        B_gain = load_low(norm_weight + RANK, n, STATES)
        C_gain = load_low(norm_weight + RANK + STATES, n, STATES)
    wait_for_inputs(EARLY)
    KIND: tl.constexpr = x.dtype.element_ty
    row = seq.to(tl.int64)
    low_at = low + row * low_row
    # All at once: behind an exchange between threads each would be waited for by itself.
    x_t = tl.load(x + row * x_row + d, mask=some_d, other=0.0).to(tl.float32)
    if z is not None:
        z_t = tl.load(z + row * z_row + d, mask=some_d, other=0.0).to(tl.float32)
    B_t, C_t = load_low(low_at + RANK, n, STATES), load_low(low_at + RANK + STATES, n, STATES)
    dt = load_low(low_at, r, RANK)
    if NORMED:
        dt = normed(dt, dt_gain, RANK, eps, KIND)
        B_t = normed(B_t, B_gain, STATES, eps, KIND)
        C_t = normed(C_t, C_gain, STATES, eps, KIND)
    step = tl.sum(w.to(tl.float32) * dt[None, :], 1)
    delta = softplus(rounded(step, KIND).to(tl.float32) + bias)
    h, out = next_token(h, delta, rates, B_t, C_t, x_t, skip)
    if z is not None:
        out *= silu(z_t)
    put(y + row * y_row + d, out, some_d)
    store_slot(state, slot, state_slot, state_row, n, d, channels, h, STATES)
