"""Triton kernels of the causal convolution; `triton.py` launches them."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import below_if, find_chunk, put, silu, wait_for_inputs


@triton.jit
def keep_last_rows(
    inputs, x_row, stored, state_row, c, channels, kept, length, TAPS: tl.constexpr
):  # fmt: skip
    """Write a sequence's last TAPS - 1 rows into its slot; of a shorter one also rows that were
    there, where they are `kept`."""
    used = c < channels
    for k in tl.static_range(TAPS - 1):
        last = length - (TAPS - 1) + k
        new_at = inputs + last.to(tl.int64) * x_row
        newer = tl.load(new_at, mask=below_if(c, channels, last >= 0), other=0.0)
        outside = kept & below_if(c, channels, last < 0)
        older = tl.load(stored + (TAPS - 1 + last) * state_row, mask=outside, other=0.0)
        # One of them is zero.
        put(stored + k * state_row, newer.to(tl.float32) + older.to(tl.float32), used)


@triton.jit
def input_row(
    inputs, x_row, stored, state_row, c, channels, kept, t, length,
    TAPS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Row `t` of a sequence, zeros outside; in the OVERLAP also from before its start, which the
    slot has where it is `kept`."""
    inside = below_if(c, channels, (t >= 0) & (t < length))
    row = tl.load(inputs + t.to(tl.int64) * x_row, mask=inside, other=0.0)
    if OVERLAP:
        before = kept & below_if(c, channels, t < 0)
        older = tl.load(stored + (TAPS - 1 + t) * state_row, mask=before, other=0.0)
        row = tl.where(before, older.to(row.dtype), row)
    return row


@triton.jit(do_not_specialize=["first", "n_seqs"])
def prefill(
    x, x_row, weight, bias, state, state_slot, state_row, cu_seqlens, slots, fresh, y,
    channels, first, n_seqs,
    TAPS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_T: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """BLOCK_T tokens of one sequence, BLOCK_C channels; sequences from `first` on.

    Programs that follow each other have the same tokens: rows are read whole at about one time.

    The inputs of ROWS tokens are asked for together, and each is read once but for the overlap of
    TAPS - 1 rows: a thread has the same channels of all of them.

    The program of a sequence's first tokens reads the slot and then writes it, so that no other
    program can see what is half written. BLOCK_T is at least TAPS - 1.

    Floor: bytes, `2 * T * C * itemsize` (the overlap stays in the caches).
    """
    c_blocks = tl.cdiv(channels, BLOCK_C)
    number, c_block = tl.program_id(0) // c_blocks, tl.program_id(0) % c_blocks
    seq, chunk = find_chunk(cu_seqlens, first, n_seqs, number, BLOCK_T, BLOCK_S)
    if seq >= n_seqs:
        return
    start = tl.load(cu_seqlens + seq)
    length = tl.load(cu_seqlens + seq + 1) - start
    c = c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    used = c < channels
    stored = state + tl.load(slots + seq) * state_slot + c
    kept = below_if(c, channels, tl.load(fresh + seq) == 0)  # where the slot counts
    inputs, outputs = x + start.to(tl.int64) * x_row + c, y + start.to(tl.int64) * channels + c
    added = tl.zeros([BLOCK_C], dtype=tl.float32)
    if bias is not None:
        added = tl.load(bias + c, mask=used, other=0.0).to(tl.float32)
    taps = ()
    for k in tl.static_range(TAPS):
        taps += (tl.load(weight + k * channels + c, mask=used, other=0.0).to(tl.float32),)

    top = chunk * BLOCK_T
    for base in range(top, tl.minimum(top + BLOCK_T, length), ROWS):
        rows = ()
        for i in tl.static_range(ROWS + TAPS - 1):
            t = base - (TAPS - 1) + i
            row = input_row(
                inputs, x_row, stored, state_row, c, channels, kept, t, length, TAPS, i < TAPS - 1
            )
            rows += (row,)
        for j in tl.static_range(ROWS):
            total = tl.zeros([BLOCK_C], dtype=tl.float32)
            for k in tl.static_range(TAPS):
                total += taps[k] * rows[j + k].to(tl.float32)
            total += added
            if ACTIVATION:
                total = silu(total)
            t = base + j
            put(outputs + t.to(tl.int64) * channels, total, below_if(c, channels, t < length))

    if chunk == 0:
        tl.debug_barrier()  # every thread has read the slot
        keep_last_rows(inputs, x_row, stored, state_row, c, channels, kept, length, TAPS)


@triton.jit
def update(
    x, x_row, weight, bias, state, state_slot, state_row, slots, fresh, y, channels,
    TAPS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_C: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token of one sequence, BLOCK_C channels: sum, and the slot's rows moved up by one.

    Floor: bytes, `n * C * (2 * (TAPS - 1) + 2) * itemsize`.
    """
    seq = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    used = c < channels
    stored = state + tl.load(slots + seq) * state_slot + c
    kept = below_if(c, channels, tl.load(fresh + seq) == 0)  # where the slot counts
    total, window = tl.zeros([BLOCK_C], dtype=tl.float32), ()
    for k in tl.static_range(TAPS - 1):
        value = tl.load(stored + k * state_row, mask=kept, other=0.0).to(tl.float32)
        window += (value,)
        tap = tl.load(weight + k * channels + c, mask=used, other=0.0).to(tl.float32)
        total += tap * value
    last_tap = tl.load(weight + (TAPS - 1) * channels + c, mask=used, other=0.0).to(tl.float32)
    added = tl.zeros([BLOCK_C], dtype=tl.float32)
    if bias is not None:
        added = tl.load(bias + c, mask=used, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    newest = tl.load(x + seq.to(tl.int64) * x_row + c, mask=used, other=0.0).to(tl.float32)
    for k in tl.static_range(1, TAPS - 1):
        put(stored + (k - 1) * state_row, window[k], used)
    if TAPS > 1:
        put(stored + (TAPS - 2) * state_row, newest, used)
    total += last_tap * newest
    total += added
    if ACTIVATION:
        total = silu(total)
    put(y + seq.to(tl.int64) * channels + c, total, used)
