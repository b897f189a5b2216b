"""Triton kernels of Mamba-1's selective scan; `triton.py` launches them.

A tile is `[N, channels]`, all states of some channels, kept in registers while tokens go by. Every
thread holds all states of its own channels (`channels_of`): no exchange at all. What the next
tokens need is copied into shared memory meanwhile (STAGES), which takes no registers.

A long sequence is cut into chunks so that it fills the card. The decay over a chunk is
`exp(A * sum of Δ)`, so between chunks only states and one sum per channel travel:
1. `chunk_ends`: every chunk alone, from a state of zero: its last state and its sum of Δ;
2. `pass_states`: over a sequence's chunks in order: the state that each starts from;
3. `finish`: every chunk again, from that state: outputs, and the slot of the sequence.
Sequences that are not cut need the third only (`chunks.py`).

Floors, for T tokens and D channels of itemsize b. Bytes: `4 b T D` (x, dt, z, y); the first pass
reads x and dt once more, and states cost `16 N D` bytes a chunk. Special functions: `T D (N + 3)`,
and `T D (N + 1)` in the first pass; at 16 a cycle and SM these are the higher floor for N = 16 in
16 bits: 0.36 ms for 8,192 tokens of 5,120 channels on an H100, where the bytes take 0.1 ms.
"""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import (
    LOG2_E,
    below_if,
    chunks_before,
    exp2,
    find_chunk,
    put,
    silu,
    softplus,
    wait_for_inputs,
)

STAGES = tl.constexpr(4)
"""Tokens that are being read or computed at once, in prefill."""


@triton.jit
def channels_of(block, BLOCK_D: tl.constexpr, EACH: tl.constexpr):
    """The channels of a block. A thread gets EACH of them with all their states: what is loaded
    would otherwise be spread as suits wide loads, and every token would need exchanges."""
    return tl.max_contiguous(block * BLOCK_D + tl.arange(0, BLOCK_D), EACH)


@triton.jit
def load_rates(A, A_row, n, d, channels, STATES: tl.constexpr):
    """`A log2(e)`, `[N, channels]`; zero outside, so that nothing there decays or grows."""
    used = (n < STATES)[:, None] & (d < channels)[None, :]
    return tl.load(A + n[:, None] * A_row + d[None, :], mask=used, other=0.0) * LOG2_E


@triton.jit
def load_states(at, n, STATES: tl.constexpr, BLOCK_N: tl.constexpr):
    """A token's B or C; where nothing is masked these become a few wide loads."""
    return tl.load(at) if STATES == BLOCK_N else tl.load(at, mask=n < STATES, other=0.0)


@triton.jit
def load_slot(state, slot, state_slot, state_row, n, d, channels, kept, STATES: tl.constexpr):
    """The slot's state `[N, channels]` in float32, or zeros unless `kept`."""
    used = (n < STATES)[:, None] & below_if(d, channels, kept)[None, :]
    at = state + slot * state_slot + n[:, None] * state_row + d[None, :]
    return tl.load(at, mask=used, other=0.0).to(tl.float32)


@triton.jit
def store_slot(state, slot, state_slot, state_row, n, d, channels, h, STATES: tl.constexpr):
    """Round `h` `[N, channels]` into the slot."""
    used = (n < STATES)[:, None] & (d < channels)[None, :]
    at = state + slot * state_slot + n[:, None] * state_row + d[None, :]
    put(at, h, used)


@triton.jit
def load_bias(dt_bias, d, some_d, BLOCK_D: tl.constexpr):
    """The bias of Δ in float32; zeros if there is none."""
    bias = tl.zeros([BLOCK_D], dtype=tl.float32)
    if dt_bias is not None:
        bias = tl.load(dt_bias + d, mask=some_d, other=0.0).to(tl.float32)
    return bias


@triton.jit
def next_token(h, delta, rates, B_t, C_t, x_t, skip):
    """The state `[N, channels]` after one more token, and the token's output before the gate."""
    h = exp2(delta[None, :] * rates) * h + B_t[:, None] * (delta * x_t)[None, :]
    return h, tl.sum(C_t[:, None] * h, 0) + skip * x_t


@triton.jit(do_not_specialize=["first", "n_seqs", "chunk"])
def chunk_ends(
    x, x_row, dt, dt_row, A, A_row, B, B_row, dt_bias, cu_seqlens, ends, sums,
    channels, first, n_seqs, chunk,
    STATES: tl.constexpr, UNIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    EACH: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Each chunk but a sequence's last, from zero: `ends` `[chunks, N, D]`, `sums` of Δ.

    Rows of B (and of C) are `UNIT * B_row` apart.
    """
    number = tl.program_id(0)
    seq, before = find_chunk(cu_seqlens, first, n_seqs, number, chunk, BLOCK_S)
    if seq >= n_seqs:
        return
    begin = tl.load(cu_seqlens + seq) + before * chunk
    if begin + chunk >= tl.load(cu_seqlens + seq + 1):
        return
    n, d = tl.arange(0, BLOCK_N), channels_of(tl.program_id(1), BLOCK_D, EACH)
    some_d = d < channels
    rates = load_rates(A, A_row, n, d, channels, STATES)
    bias = load_bias(dt_bias, d, some_d, BLOCK_D)
    row, B_row = begin.to(tl.int64), B_row * UNIT
    x_at, dt_at, B_at = x + row * x_row + d, dt + row * dt_row + d, B + row * B_row + n
    h = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    for _ in tl.range(0, chunk, num_stages=STAGES):
        x_t = tl.load(x_at, mask=some_d, other=0.0).to(tl.float32)
        delta = softplus(tl.load(dt_at, mask=some_d, other=0.0).to(tl.float32) + bias)
        B_t = load_states(B_at, n, STATES, BLOCK_N).to(tl.float32)
        x_at, dt_at, B_at = x_at + x_row, dt_at + dt_row, B_at + B_row
        total += delta
        h = exp2(delta[None, :] * rates) * h
        h += B_t[:, None] * (delta * x_t)[None, :]
    number = number.to(tl.int64)
    tl.store(sums + number * channels + d, total, mask=some_d)
    at = ends + number * STATES * channels + n[:, None] * channels + d[None, :]
    tl.store(at, h, mask=(n < STATES)[:, None] & some_d[None, :])


@triton.jit(do_not_specialize=["first", "chunk"])
def pass_states(
    A, A_row, state, state_slot, state_row, cu_seqlens, slots, fresh, ends, sums, channels, first,
    chunk,
    STATES: tl.constexpr, AHEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Replace each chunk's end in `ends` by the state that the chunk starts from; one state n.

    The ends of AHEAD chunks are asked for together: one after the other, all is waiting.
    """
    seq, n = first + tl.program_id(0), tl.program_id(2)
    n_chunks = tl.cdiv(tl.load(cu_seqlens + seq + 1) - tl.load(cu_seqlens + seq), chunk)
    number = chunks_before(cu_seqlens, first, seq, chunk, BLOCK_S).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    used = d < channels
    rates = tl.load(A + n * A_row + d, mask=used, other=0.0) * LOG2_E
    kept = below_if(d, channels, tl.load(fresh + seq) == 0)
    at = state + tl.load(slots + seq) * state_slot + n * state_row + d
    h = tl.load(at, mask=kept, other=0.0).to(tl.float32)
    end_at, sum_at = ends + (number * STATES + n) * channels + d, sums + number * channels + d
    for k in range(0, n_chunks, AHEAD):
        some, end, total = (), (), ()
        for j in tl.static_range(AHEAD):
            # Of the last chunk nothing was written, and nothing is used. Beyond it all is zero.
            some += (below_if(d, channels, k + j < n_chunks),)
            end += (tl.load(end_at + j * STATES * channels, mask=some[j], other=0.0),)
            total += (tl.load(sum_at + j * channels, mask=some[j], other=0.0),)
        for j in tl.static_range(AHEAD):
            tl.store(end_at, h, mask=some[j])
            h = exp2(total[j] * rates) * h + end[j]
            end_at += STATES * channels
        sum_at += AHEAD * channels


@triton.jit(do_not_specialize=["first", "n_seqs", "chunk"])
def finish(
    x, x_row, dt, dt_row, A, A_row, B, B_row, C, C_row, D, z, z_row, dt_bias,
    state, state_slot, state_row, cu_seqlens, slots, fresh, starts, y, y_row, channels,
    first, n_seqs, chunk,
    STATES: tl.constexpr, UNIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    EACH: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Outputs of each chunk, from its state in `starts`, or from the slot if that is None."""
    number = tl.program_id(0)
    seq, before = find_chunk(cu_seqlens, first, n_seqs, number, chunk, BLOCK_S)
    if seq >= n_seqs:
        return
    begin, stop = tl.load(cu_seqlens + seq) + before * chunk, tl.load(cu_seqlens + seq + 1)
    end = tl.minimum(begin + chunk, stop)
    n, d = tl.arange(0, BLOCK_N), channels_of(tl.program_id(1), BLOCK_D, EACH)
    some_d = d < channels
    slot = tl.load(slots + seq)
    if starts is None:
        kept = tl.load(fresh + seq) == 0
        h = load_slot(state, slot, state_slot, state_row, n, d, channels, kept, STATES)
    else:
        at = starts + number.to(tl.int64) * STATES * channels + n[:, None] * channels + d[None, :]
        h = tl.load(at, mask=(n < STATES)[:, None] & some_d[None, :], other=0.0)
    rates = load_rates(A, A_row, n, d, channels, STATES)
    skip = tl.load(D + d, mask=some_d, other=0.0).to(tl.float32)
    bias = load_bias(dt_bias, d, some_d, BLOCK_D)
    row, B_row, C_row = begin.to(tl.int64), B_row * UNIT, C_row * UNIT
    x_at, dt_at, y_at = x + row * x_row + d, dt + row * dt_row + d, y + row * y_row + d
    B_at, C_at = B + row * B_row + n, C + row * C_row + n
    if z is not None:
        z_at = z + row * z_row + d
    for _ in tl.range(begin, end, num_stages=STAGES):
        x_t = tl.load(x_at, mask=some_d, other=0.0).to(tl.float32)
        delta = softplus(tl.load(dt_at, mask=some_d, other=0.0).to(tl.float32) + bias)
        B_t = load_states(B_at, n, STATES, BLOCK_N).to(tl.float32)
        C_t = load_states(C_at, n, STATES, BLOCK_N).to(tl.float32)
        x_at, dt_at, B_at, C_at = x_at + x_row, dt_at + dt_row, B_at + B_row, C_at + C_row
        h, out = next_token(h, delta, rates, B_t, C_t, x_t, skip)
        if z is not None:
            out *= silu(tl.load(z_at, mask=some_d, other=0.0).to(tl.float32))
            z_at += z_row
        put(y_at, out, some_d)
        y_at += y_row
    if end == stop:
        store_slot(state, slot, state_slot, state_row, n, d, channels, h, STATES)


@triton.jit
def update(
    x, x_row, dt, dt_row, A, A_row, B, B_row, C, C_row, D, z, z_row, dt_bias,
    state, state_slot, state_row, slots, fresh, y, y_row, channels,
    STATES: tl.constexpr, UNIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    EACH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token of one sequence; rows as of `chunk_ends`.

    Floor: bytes, `n * D * (2 N * state's itemsize + 4 b)`, and A once.
    """
    seq = tl.program_id(0)
    n, d = tl.arange(0, BLOCK_N), channels_of(tl.program_id(1), BLOCK_D, EACH)
    some_d = d < channels
    slot, kept = tl.load(slots + seq), tl.load(fresh + seq) == 0
    h = load_slot(state, slot, state_slot, state_row, n, d, channels, kept, STATES)
    rates = load_rates(A, A_row, n, d, channels, STATES)
    bias = load_bias(dt_bias, d, some_d, BLOCK_D)
    skip = tl.load(D + d, mask=some_d, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    row, B_row, C_row = seq.to(tl.int64), B_row * UNIT, C_row * UNIT
    x_t = tl.load(x + row * x_row + d, mask=some_d, other=0.0).to(tl.float32)
    step = tl.load(dt + row * dt_row + d, mask=some_d, other=0.0).to(tl.float32)
    B_t = load_states(B + row * B_row + n, n, STATES, BLOCK_N).to(tl.float32)
    C_t = load_states(C + row * C_row + n, n, STATES, BLOCK_N).to(tl.float32)
    if z is not None:
        z_t = tl.load(z + row * z_row + d, mask=some_d, other=0.0).to(tl.float32)
    h, out = next_token(h, softplus(step + bias), rates, B_t, C_t, x_t, skip)
    if z is not None:
        out *= silu(z_t)
    put(y + row * y_row + d, out, some_d)
    store_slot(state, slot, state_slot, state_row, n, d, channels, h, STATES)
