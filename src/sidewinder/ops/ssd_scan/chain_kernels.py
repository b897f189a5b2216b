"""Triton kernel of Mamba-2's scan for chains of drafts; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.ssd_scan.kernels import step_size
from sidewinder.ops.triton_math import (
    below_if,
    exact,
    put,
    rounded,
    slot_to_leave,
    wait_for_inputs,
)


@triton.jit
def load_token(
    x, x_row, dt, dt_row, B, B_row, C, C_row, row, head, group, n, p, width, states, exists
):  # fmt: skip
    """One head's x, dt, B and C of a row, as they are stored; zeros unless it `exists`."""
    some_n, some_p = below_if(n, states, exists), below_if(p, width, exists)
    x_t = tl.load(x + row * x_row + head * width + p, mask=some_p, other=0.0)
    dt_t = tl.load(dt + row * dt_row + head, mask=exists, other=0.0)
    B_t = tl.load(B + row * B_row + group * states + n, mask=some_n, other=0.0)
    C_t = tl.load(C + row * C_row + group * states + n, mask=some_n, other=0.0)
    return x_t, dt_t, B_t, C_t


@triton.jit
def update_chains(
    x, x_row, dt, dt_row, A, B, B_row, C, C_row, D, dt_bias, head_group,
    state, state_slot, chains, slots, fresh, y, lowest, highest, heads, width, states,
    BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`kernels.update` of the rows of one chain: the state is read once, and left behind each row
    in that row's slot. What the next row needs is asked for before this one is computed.

    Floor: bytes, `H * P * ((n + chains) * N * state's itemsize + 2 n b)` for n rows.
    """
    chain, head = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(chains + chain), tl.load(chains + chain + 1)
    if begin >= end:
        return
    n, p = tl.arange(0, BLOCK_N), tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    some_n, some_p = n < states, p < width
    group = tl.load(head_group + head)
    bias, rate = tl.load(dt_bias + head).to(tl.float32), tl.load(A + head).to(tl.float32)
    skip = tl.load(D + head).to(tl.float32)
    state_at = state + head * states * width + n[:, None] * width + p[None, :]
    kept = some_n[:, None] & below_if(p, width, tl.load(fresh + begin) == 0)[None, :]
    slot_at = state_at + tl.load(slots + begin) * state_slot
    h = tl.load(slot_at, mask=kept, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    row = begin.to(tl.int64)
    following = load_token(
        x, x_row, dt, dt_row, B, B_row, C, C_row, row, head, group, n, p, width, states, row < end
    )  # fmt: skip
    for _ in range(begin, end):
        x_t, dt_t, B_t, C_t = following
        following = load_token(
            x, x_row, dt, dt_row, B, B_row, C, C_row, row + 1, head, group, n, p, width, states,
            row + 1 < end,
        )  # fmt: skip
        x_t, B_t, C_t = x_t.to(tl.float32), B_t.to(tl.float32), C_t.to(tl.float32)
        delta = step_size(dt_t, bias, lowest, highest)
        h = tl.exp(delta * rate) * h + B_t[:, None] * (delta * x_t)[None, :]
        slot, leaves = slot_to_leave(slots, row, end)
        left = some_n[:, None] & below_if(p, width, leaves)[None, :]
        put(state_at + slot * state_slot, h, left)
        out = tl.sum(C_t[:, None] * h, 0) + skip * x_t
        put(y + (row * heads + head) * width + p, out, some_p)
        h = exact(rounded(h, state.dtype.element_ty))
        row += 1
