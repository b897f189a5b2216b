"""Triton kernel of the causal convolution for chains of drafts; `triton.py` launches it."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import below_if, put, silu, wait_for_inputs


@triton.jit
def load_row(inputs, x_row, row, c, channels, exists):
    """A row's BLOCK_C channels in float32; zeros unless it `exists`."""
    at = inputs + row * x_row
    return tl.load(at, mask=below_if(c, channels, exists), other=0.0).to(tl.float32)


@triton.jit
def update_chains(
    x, x_row, weight, bias, state, state_slot, state_row, chains, slots, fresh, y, channels,
    TAPS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_C: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`kernels.update` of the rows of one chain, BLOCK_C channels: the state is read once, and left
    behind each row in that row's slot.

    Floor: bytes, `(2 n + (n + chains) * (TAPS - 1)) * C * itemsize` for n rows.
    """
    chain = tl.program_id(0)
    begin, end = tl.load(chains + chain), tl.load(chains + chain + 1)
    if begin >= end:
        return
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    used = c < channels
    stored = state + tl.load(slots + begin) * state_slot + c
    kept = below_if(c, channels, tl.load(fresh + begin) == 0)  # where the slot counts
    taps, window = (), ()
    for k in tl.static_range(TAPS - 1):
        window += (tl.load(stored + k * state_row, mask=kept, other=0.0).to(tl.float32),)
        taps += (tl.load(weight + k * channels + c, mask=used, other=0.0).to(tl.float32),)
    last_tap = tl.load(weight + (TAPS - 1) * channels + c, mask=used, other=0.0).to(tl.float32)
    added = tl.zeros([BLOCK_C], dtype=tl.float32)
    if bias is not None:
        added = tl.load(bias + c, mask=used, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    row = begin.to(tl.int64)
    following = load_row(x + c, x_row, row, c, channels, row < end)
    for _ in range(begin, end):
        newest = following
        following = load_row(x + c, x_row, row + 1, c, channels, row + 1 < end)  # in good time
        total, moved = tl.zeros([BLOCK_C], dtype=tl.float32), ()
        left = state + tl.load(slots + row) * state_slot + c
        for k in tl.static_range(TAPS - 1):
            total += taps[k] * window[k]
            if k > 0:
                put(left + (k - 1) * state_row, window[k], used)
                moved += (window[k],)
        if TAPS > 1:
            put(left + (TAPS - 2) * state_row, newest, used)
            moved += (newest,)
        window = moved
        total += last_tap * newest
        total += added
        if ACTIVATION:
            total = silu(total)
        put(y + row * channels + c, total, used)
        row += 1
