"""Triton kernel of Mamba-1's selective scan for chains of drafts; `triton.py` launches it."""

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
from sidewinder.ops.triton_math import (
    below_if,
    exact,
    put,
    rounded,
    silu,
    slot_to_leave,
    softplus,
    wait_for_inputs,
)


@triton.jit
def load_token(
    x, x_row, dt, dt_row, B, B_row, C, C_row, z, z_row, row, n, d, channels, exists,
    STATES: tl.constexpr,
):  # fmt: skip
    """A row's x, dt, B, C and z as they are stored; zeros unless it `exists`. Without z x again."""
    some_n, some_d = below_if(n, STATES, exists), below_if(d, channels, exists)
    x_t = tl.load(x + row * x_row + d, mask=some_d, other=0.0)
    dt_t = tl.load(dt + row * dt_row + d, mask=some_d, other=0.0)
    B_t = tl.load(B + row * B_row + n, mask=some_n, other=0.0)
    C_t = tl.load(C + row * C_row + n, mask=some_n, other=0.0)
    z_t = x_t
    if z is not None:
        z_t = tl.load(z + row * z_row + d, mask=some_d, other=0.0)
    return x_t, dt_t, B_t, C_t, z_t


@triton.jit
def as_stored(h, state):
    """`h` as it would be read from the slot that it is left in."""
    return exact(rounded(h, state.dtype.element_ty))


@triton.jit
def update_chains(
    x, x_row, dt, dt_row, A, A_row, B, B_row, C, C_row, D, z, z_row, dt_bias,
    state, state_slot, state_row, chains, slots, fresh, y, y_row, channels,
    STATES: tl.constexpr, UNIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    EACH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`kernels.update` of the rows of one chain: the state is read once, and left behind each row
    in that row's slot. What the next row needs is asked for before this one is computed.

    Floor: bytes, `D * ((n + chains) * N * state's itemsize + 4 n b)` for n rows, and A once.
    """
    chain = tl.program_id(0)
    begin, end = tl.load(chains + chain), tl.load(chains + chain + 1)
    if begin >= end:
        return
    n, d = tl.arange(0, BLOCK_N), channels_of(tl.program_id(1), BLOCK_D, EACH)
    some_d = d < channels
    slot, kept = tl.load(slots + begin), tl.load(fresh + begin) == 0
    h = load_slot(state, slot, state_slot, state_row, n, d, channels, kept, STATES)
    rates = load_rates(A, A_row, n, d, channels, STATES)
    bias = load_bias(dt_bias, d, some_d, BLOCK_D)
    skip = tl.load(D + d, mask=some_d, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    B_row, C_row = B_row * UNIT, C_row * UNIT
    row = begin.to(tl.int64)
    following = load_token(
        x, x_row, dt, dt_row, B, B_row, C, C_row, z, z_row, row, n, d, channels, row < end, STATES
    )
    for _ in range(begin, end):
        x_t, dt_t, B_t, C_t, z_t = following
        following = load_token(
            x, x_row, dt, dt_row, B, B_row, C, C_row, z, z_row, row + 1, n, d, channels,
            row + 1 < end, STATES,
        )  # fmt: skip
        delta = softplus(dt_t.to(tl.float32) + bias)
        B_t, C_t = B_t.to(tl.float32), C_t.to(tl.float32)
        h, out = next_token(h, delta, rates, B_t, C_t, x_t.to(tl.float32), skip)
        if z is not None:
            out *= silu(z_t.to(tl.float32))
        put(y + row * y_row + d, out, some_d)
        slot, leaves = slot_to_leave(slots, row, end)
        some = tl.where(leaves, channels, 0)
        store_slot(state, slot, state_slot, state_row, n, d, some, h, STATES)
        h = as_stored(h, state)
        row += 1
