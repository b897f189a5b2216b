"""Triton kernels of Mamba-1's selective scan; `triton.py` launches them.

A tile is `[N, channels]`, all states of some channels, kept in registers while tokens go by. With
channels along the threads, every thread holds the states of its own channels: no exchange at all.

A long sequence is cut into chunks so that it fills the card. The decay over a chunk is
`exp(A * sum of Δ)`, so between chunks only states and one sum per channel travel:
1. `chunk_ends`: every chunk alone, from a state of zero: its last state and its sum of Δ;
2. `pass_states`: over a sequence's chunks in order: the state that each starts from;
3. `finish`: every chunk again, from that state: outputs, and the slot of the sequence.
A sequence of one chunk needs the third only.

Floors, for T tokens and D channels of itemsize b. Bytes: `4 b T D` (x, dt, z, y); the first pass
reads x and dt once more, and states cost `12 N D` bytes a chunk. Exponentials: `T N D`, twice where
chunks are cut; at 16 a cycle and SM these are the higher floor for N = 16 in 16 bits.
"""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import (
    LOG2_E,
    below_if,
    chunks_before,
    find_chunk,
    put,
    silu,
    softplus,
)


@triton.jit
def load_rates(A, A_row, n, d, states, channels):
    """`A log2(e)`, `[N, channels]`; zero outside, so that nothing there decays or grows."""
    used = (n < states)[:, None] & (d < channels)[None, :]
    return tl.load(A + n[:, None] * A_row + d[None, :], mask=used, other=0.0) * LOG2_E


@triton.jit
def load_slot(state, slot, state_slot, state_row, n, d, states, channels, kept):
    """The slot's state `[N, channels]` in float32, or zeros unless `kept`."""
    used = (n < states)[:, None] & below_if(d, channels, kept)[None, :]
    at = state + slot * state_slot + n[:, None] * state_row + d[None, :]
    return tl.load(at, mask=used, other=0.0).to(tl.float32)


@triton.jit
def store_slot(state, slot, state_slot, state_row, n, d, states, channels, h):
    """Round `h` `[N, channels]` into the slot."""
    used = (n < states)[:, None] & (d < channels)[None, :]
    at = state + slot * state_slot + n[:, None] * state_row + d[None, :]
    put(at, h, used)


@triton.jit(do_not_specialize=["first", "n_seqs"])
def chunk_ends(
    x, x_row, dt, dt_row, A, A_row, B, B_row, dt_bias, cu_seqlens, ends, sums,
    states, channels, first, n_seqs,
    CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Each chunk but a sequence's last, from zero: `ends` `[chunks, N, D]`, `sums` of Δ."""
    number = tl.program_id(0)
    seq, chunk = find_chunk(cu_seqlens, first, n_seqs, number, CHUNK, BLOCK_S)
    if seq >= n_seqs:
        return
    begin = tl.load(cu_seqlens + seq) + chunk * CHUNK
    if begin + CHUNK >= tl.load(cu_seqlens + seq + 1):
        return
    n, d = tl.arange(0, BLOCK_N), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    some_n, some_d = n < states, d < channels
    rates = load_rates(A, A_row, n, d, states, channels)
    bias = tl.zeros([BLOCK_D], dtype=tl.float32)
    if dt_bias is not None:
        bias = tl.load(dt_bias + d, mask=some_d, other=0.0).to(tl.float32)
    row = begin.to(tl.int64)
    x_at, dt_at, B_at = x + row * x_row + d, dt + row * dt_row + d, B + row * B_row + n
    h = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    x_t = tl.load(x_at, mask=some_d, other=0.0)
    dt_t = tl.load(dt_at, mask=some_d, other=0.0)
    B_t = tl.load(B_at, mask=some_n, other=0.0)
    for t in range(CHUNK):
        delta = softplus(dt_t.to(tl.float32) + bias)
        drive = B_t.to(tl.float32)[:, None] * (delta * x_t.to(tl.float32))[None, :]
        # The next token's loads start before this one's arithmetic.
        x_at, dt_at, B_at = x_at + x_row, dt_at + dt_row, B_at + B_row
        x_t = tl.load(x_at, mask=below_if(d, channels, t + 1 < CHUNK), other=0.0)
        dt_t = tl.load(dt_at, mask=below_if(d, channels, t + 1 < CHUNK), other=0.0)
        B_t = tl.load(B_at, mask=below_if(n, states, t + 1 < CHUNK), other=0.0)
        h = tl.exp2(delta[None, :] * rates) * h + drive
        total += delta
    number = number.to(tl.int64)
    tl.store(sums + number * channels + d, total, mask=some_d)
    at = ends + number * states * channels + n[:, None] * channels + d[None, :]
    tl.store(at, h, mask=some_n[:, None] & some_d[None, :])


@triton.jit(do_not_specialize=["first"])
def pass_states(
    A, A_row, state, state_slot, state_row, cu_seqlens, slots, fresh, ends, sums,
    states, channels, first,
    CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Replace each chunk's end in `ends` by the state that the chunk starts from."""
    seq = first + tl.program_id(0)
    n_chunks = tl.cdiv(tl.load(cu_seqlens + seq + 1) - tl.load(cu_seqlens + seq), CHUNK)
    number = chunks_before(cu_seqlens, first, seq, CHUNK, BLOCK_S).to(tl.int64)
    n, d = tl.arange(0, BLOCK_N), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    some_d = d < channels
    used = (n < states)[:, None] & some_d[None, :]
    rates = load_rates(A, A_row, n, d, states, channels)
    slot, kept = tl.load(slots + seq), tl.load(fresh + seq) == 0
    h = load_slot(state, slot, state_slot, state_row, n, d, states, channels, kept)
    end_at = ends + number * states * channels + n[:, None] * channels + d[None, :]
    sum_at = sums + number * channels + d
    for _ in range(n_chunks - 1):
        end = tl.load(end_at, mask=used, other=0.0)
        total = tl.load(sum_at, mask=some_d, other=0.0)
        tl.store(end_at, h, mask=used)
        h = tl.exp2(total[None, :] * rates) * h + end
        end_at, sum_at = end_at + states * channels, sum_at + channels
    tl.store(end_at, h, mask=used)


@triton.jit(do_not_specialize=["first", "n_seqs"])
def finish(
    x, x_row, dt, dt_row, A, A_row, B, B_row, C, C_row, D, z, z_row, dt_bias,
    state, state_slot, state_row, cu_seqlens, slots, fresh, starts, y,
    states, channels, first, n_seqs,
    CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Outputs of each chunk, from its state in `starts`, or from the slot if that is None."""
    number = tl.program_id(0)
    seq, chunk = find_chunk(cu_seqlens, first, n_seqs, number, CHUNK, BLOCK_S)
    if seq >= n_seqs:
        return
    begin, stop = tl.load(cu_seqlens + seq) + chunk * CHUNK, tl.load(cu_seqlens + seq + 1)
    end = tl.minimum(begin + CHUNK, stop)
    n, d = tl.arange(0, BLOCK_N), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    some_n, some_d = n < states, d < channels
    slot = tl.load(slots + seq)
    if starts is None:
        kept = tl.load(fresh + seq) == 0
        h = load_slot(state, slot, state_slot, state_row, n, d, states, channels, kept)
    else:
        at = starts + number.to(tl.int64) * states * channels + n[:, None] * channels + d[None, :]
        h = tl.load(at, mask=some_n[:, None] & some_d[None, :], other=0.0)
    rates = load_rates(A, A_row, n, d, states, channels)
    skip = tl.load(D + d, mask=some_d, other=0.0).to(tl.float32)
    bias = tl.zeros([BLOCK_D], dtype=tl.float32)
    if dt_bias is not None:
        bias = tl.load(dt_bias + d, mask=some_d, other=0.0).to(tl.float32)
    row = begin.to(tl.int64)
    x_at, dt_at, y_at = x + row * x_row + d, dt + row * dt_row + d, y + row * channels + d
    B_at, C_at = B + row * B_row + n, C + row * C_row + n
    x_t = tl.load(x_at, mask=some_d, other=0.0)
    dt_t = tl.load(dt_at, mask=some_d, other=0.0)
    B_t, C_t = tl.load(B_at, mask=some_n, other=0.0), tl.load(C_at, mask=some_n, other=0.0)
    if z is not None:
        z_at = z + row * z_row + d
        z_t = tl.load(z_at, mask=some_d, other=0.0)
    for t in range(begin, end):
        x_now = x_t.to(tl.float32)
        delta = softplus(dt_t.to(tl.float32) + bias)
        drive = B_t.to(tl.float32)[:, None] * (delta * x_now)[None, :]
        read = C_t.to(tl.float32)[:, None]
        # The next token's loads start before this one's arithmetic.
        more_d, more_n = below_if(d, channels, t + 1 < end), below_if(n, states, t + 1 < end)
        x_at, dt_at, B_at, C_at = x_at + x_row, dt_at + dt_row, B_at + B_row, C_at + C_row
        x_t = tl.load(x_at, mask=more_d, other=0.0)
        dt_t = tl.load(dt_at, mask=more_d, other=0.0)
        B_t, C_t = tl.load(B_at, mask=more_n, other=0.0), tl.load(C_at, mask=more_n, other=0.0)
        h = tl.exp2(delta[None, :] * rates) * h + drive
        out = tl.sum(read * h, 0) + skip * x_now
        if z is not None:
            out *= silu(z_t.to(tl.float32))
            z_at += z_row
            z_t = tl.load(z_at, mask=more_d, other=0.0)
        put(y_at, out, some_d)
        y_at += channels
    if end == stop:
        store_slot(state, slot, state_slot, state_row, n, d, states, channels, h)


@triton.jit
def update(
    x, x_row, dt, dt_row, A, A_row, B, B_row, C, C_row, D, z, z_row, dt_bias,
    state, state_slot, state_row, slots, fresh, y, states, channels,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One token of one sequence.

    Floor: bytes, `n * D * (2 N * state's itemsize + 4 b)`, and A once.
    """
    seq = tl.program_id(0)
    row = seq.to(tl.int64)
    n, d = tl.arange(0, BLOCK_N), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    some_n, some_d = n < states, d < channels
    slot, kept = tl.load(slots + seq), tl.load(fresh + seq) == 0
    h = load_slot(state, slot, state_slot, state_row, n, d, states, channels, kept)
    rates = load_rates(A, A_row, n, d, states, channels)
    x_t = tl.load(x + row * x_row + d, mask=some_d, other=0.0).to(tl.float32)
    step = tl.load(dt + row * dt_row + d, mask=some_d, other=0.0).to(tl.float32)
    if dt_bias is not None:
        step += tl.load(dt_bias + d, mask=some_d, other=0.0).to(tl.float32)
    B_t = tl.load(B + row * B_row + n, mask=some_n, other=0.0).to(tl.float32)
    C_t = tl.load(C + row * C_row + n, mask=some_n, other=0.0).to(tl.float32)
    delta = softplus(step)
    h = tl.exp2(delta[None, :] * rates) * h + B_t[:, None] * (delta * x_t)[None, :]
    out = tl.sum(C_t[:, None] * h, 0)
    out += tl.load(D + d, mask=some_d, other=0.0).to(tl.float32) * x_t
    if z is not None:
        out *= silu(tl.load(z + row * z_row + d, mask=some_d, other=0.0).to(tl.float32))
    put(y + row * channels + d, out, some_d)
    store_slot(state, slot, state_slot, state_row, n, d, states, channels, h)
