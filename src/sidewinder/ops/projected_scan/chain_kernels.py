"""Triton kernel of the scan from x_proj's output on, for chains of drafts."""

import triton
import triton.language as tl

from sidewinder.ops.projected_scan.kernels import load_low, normed
from sidewinder.ops.selective_scan.chain_kernels import as_stored
from sidewinder.ops.selective_scan.kernels import (
    channels_of,
    load_bias,
    load_rates,
    load_slot,
    next_token,
    store_slot,
)
from sidewinder.ops.triton_math import (
    below_if,
    put,
    rounded,
    silu,
    slot_to_leave,
    softplus,
    wait_for_inputs,
)


@triton.jit
def load_token(
    x, x_row, low, low_row, z, z_row, row, r, n, d, channels, exists,
    RANK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """A row's x, z, dt, B and C as they are stored; zeros unless it `exists`. Without z x again."""
    some_d, some_n = below_if(d, channels, exists), below_if(n, STATES, exists)
    low_at = low + row * low_row
    x_t = tl.load(x + row * x_row + d, mask=some_d, other=0.0)
    z_t = x_t
    if z is not None:
        z_t = tl.load(z + row * z_row + d, mask=some_d, other=0.0)
    dt = tl.load(low_at + r, mask=below_if(r, RANK, exists), other=0.0)
    B_t = tl.load(low_at + RANK + n, mask=some_n, other=0.0)
    C_t = tl.load(low_at + RANK + STATES + n, mask=some_n, other=0.0)
    return x_t, z_t, dt, B_t, C_t


@triton.jit
def update_chains(
    x, x_row, low, low_row, norm_weight, weight, weight_row, A, A_row, D, z, z_row, dt_bias,
    state, state_slot, state_row, chains, slots, fresh, y, y_row, channels, eps,
    RANK: tl.constexpr, STATES: tl.constexpr, NORMED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EACH: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """`kernels.update` of the rows of one chain: weights and the state are read once, the state is
    left behind each row in that row's slot. What the next row needs is asked for before this one is
    computed.

    Floor: bytes, those of dt_proj's weight, and of a state for every row and chain.
    """
    chain = tl.program_id(0)
    begin, end = tl.load(chains + chain), tl.load(chains + chain + 1)
    if begin >= end:
        return
    n, r = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_R)
    d = channels_of(tl.program_id(1), BLOCK_D, EACH)
    some_d = d < channels
    at = weight + d.to(tl.int64)[:, None] * weight_row + r[None, :]
    w = tl.load(at, mask=some_d[:, None] & (r < RANK)[None, :], other=0.0)
    slot, kept = tl.load(slots + begin), tl.load(fresh + begin) == 0
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
    row = begin.to(tl.int64)
    following = load_token(
        x,
        x_row,
        low,
        low_row,
        z,
        z_row,
        row,
        r,
        n,
        d,
        channels,
        row < end,
        RANK,
        STATES,
    )
    for _ in range(begin, end):
        x_t, z_t, dt, B_t, C_t = following
        following = load_token(
            x, x_row, low, low_row, z, z_row, row + 1, r, n, d, channels, row + 1 < end,
            RANK, STATES,
        )  # fmt: skip
        dt, B_t, C_t = dt.to(tl.float32), B_t.to(tl.float32), C_t.to(tl.float32)
        if NORMED:
            dt = normed(dt, dt_gain, RANK, eps, KIND)
            B_t = normed(B_t, B_gain, STATES, eps, KIND)
            C_t = normed(C_t, C_gain, STATES, eps, KIND)
        step = tl.sum(w.to(tl.float32) * dt[None, :], 1)
        delta = softplus(rounded(step, KIND).to(tl.float32) + bias)
        h, out = next_token(h, delta, rates, B_t, C_t, x_t.to(tl.float32), skip)
        if z is not None:
            out *= silu(z_t.to(tl.float32))
        put(y + row * y_row + d, out, some_d)
        slot, leaves = slot_to_leave(slots, row, end)
        some = tl.where(leaves, channels, 0)
        store_slot(state, slot, state_slot, state_row, n, d, some, h, STATES)
        h = as_stored(h, state)
        row += 1
