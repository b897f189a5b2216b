"""Triton kernels of Mamba-2's scan; `triton.py` launches them.

Inside a chunk of tokens the outputs are a masked, decayed attention (Mamba-2 paper, section 6), so
nearly all work is matrix products. With c the running sum of Δ A log2(e) from a chunk's start:
1. `steps`: Δ and c, `[chunks, H, CHUNK]` float32: a chunk's lie together and are read wide;
2. `chunk_states`: what a chunk adds to the state, `B^T (2^(c_end - c) Δ x)`;
3. `pass_states`: over a sequence's chunks in order: the state each starts from, the slot's last;
4. `scores`: `C B^T` of each group, once for all of its heads;
5. `outputs`: `(C B^T ∘ 2^(c_t - c_s) Δ_s) x + 2^c C h + D x`, 64 rows at a time.
Only powers of differences `c_t - c_s ≤ 0` are used. Products of 16-bit models take 16-bit
operands with float32 sums; float32 models take float32 ones without rounding (no TF32).

Floors, for T tokens, G groups of H heads in all, P channels a head, N states, itemsize b, chunks of
Q tokens. FLOPs: `2 T H P (2 N + Q / 2)`, and `T G Q N` for the scores. Bytes: `2 b T H P`; for the
states of chunks `H N P (8 + 2 b) / Q` a token; and, out of the second-level cache, `2 H Q` a token
for the scores, which every head reads.
"""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import (
    LOG2_E,
    below_if,
    chunks_before,
    exp2,
    find_chunk,
    product,
    put,
    softplus,
    wait_for_inputs,
)


@triton.jit
def step_size(dt, bias, lowest, highest):
    """`Δ = clamp(softplus(dt + bias))`; NaN stays NaN."""
    delta = softplus(dt.to(tl.float32) + bias)
    delta = tl.where(delta < lowest, lowest, delta)
    return tl.where(delta > highest, highest, delta)


@triton.jit(do_not_specialize=["first", "n_seqs"])
def steps(
    dt, dt_row, A, dt_bias, cu_seqlens, deltas, sums, lowest, highest, heads, first, n_seqs,
    CHUNK: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Δ, and the running sum of Δ A log2(e) from the chunk's start, of BLOCK_H heads.

    Behind a sequence's end Δ is zero, and the sum stays what it was but for rounding.
    """
    number = tl.program_id(0)
    seq, chunk = find_chunk(cu_seqlens, first, n_seqs, number, CHUNK, BLOCK_S)
    if seq >= n_seqs:
        return
    begin, stop = tl.load(cu_seqlens + seq) + chunk * CHUNK, tl.load(cu_seqlens + seq + 1)
    i, h = tl.arange(0, CHUNK), tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    some_h = h < heads
    used = (begin + i < stop)[:, None] & some_h[None, :]
    rate = tl.load(A + h, mask=some_h, other=0.0).to(tl.float32) * LOG2_E
    bias = tl.load(dt_bias + h, mask=some_h, other=0.0).to(tl.float32)
    row = (begin + i).to(tl.int64)[:, None]
    dt_t = tl.load(dt + row * dt_row + h[None, :], mask=used, other=0.0)
    delta = tl.where(used, step_size(dt_t, bias[None, :], lowest, highest), 0.0)
    at = (number.to(tl.int64) * heads + h)[None, :] * CHUNK + i[:, None]
    tl.store(deltas + at, delta, mask=some_h[None, :])
    tl.store(sums + at, tl.cumsum(delta * rate[None, :], 0), mask=some_h[None, :])


@triton.jit(do_not_specialize=["first", "n_seqs"])
def chunk_states(
    x, x_row, B, B_row, head_group, cu_seqlens, deltas, sums, added, heads, width, states,
    first, n_seqs,
    DOT: tl.constexpr, CHUNK: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """A tile of what a chunk adds to one head's state: `added` `[chunks, H, N, P]` float32.

    Programs that follow each other have the same tokens: rows are read whole at about one time.
    """
    number, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    seq, chunk = find_chunk(cu_seqlens, first, n_seqs, number, CHUNK, BLOCK_S)
    if seq >= n_seqs:
        return
    begin, stop = tl.load(cu_seqlens + seq) + chunk * CHUNK, tl.load(cu_seqlens + seq + 1)
    length = tl.minimum(stop - begin, CHUNK)
    p_blocks = tl.cdiv(width, BLOCK_P)
    n = tl.program_id(1) // p_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    p = tl.program_id(1) % p_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    some_n, some_p = n < states, p < width
    group = tl.load(head_group + head)
    of_chunk = (number.to(tl.int64) * heads + head) * CHUNK
    last = tl.load(sums + of_chunk + length - 1)  # Further on it was summed in another order.
    total = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    for base in range(0, length, BLOCK_T):
        i = base + tl.arange(0, BLOCK_T)
        some_t, row = i < length, (begin + i).to(tl.int64)
        weight = tl.load(deltas + of_chunk + i) * exp2(last - tl.load(sums + of_chunk + i))
        at = B + row[None, :] * B_row + group * states + n[:, None]
        B_t = tl.load(at, mask=some_t[None, :] & some_n[:, None], other=0.0)
        at = x + row[:, None] * x_row + head * width + p[None, :]
        x_t = tl.load(at, mask=some_t[:, None] & some_p[None, :], other=0.0)
        total += product(B_t, x_t.to(tl.float32) * weight[:, None], DOT)
    at = added + (number.to(tl.int64) * heads + head) * states * width
    at += n[:, None] * width + p[None, :]
    tl.store(at, total, mask=some_n[:, None] & some_p[None, :])


@triton.jit(do_not_specialize=["first"])
def pass_states(
    state, state_slot, cu_seqlens, slots, fresh, sums, added, starts, heads, size, first,
    CHUNK: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """BLOCK elements of one head's state (`size = N P`): `starts` of each chunk, and the slot.

    What AHEAD chunks add is asked for together: one after the other, all is waiting.
    """
    seq, head = first + tl.program_id(0), tl.program_id(1)
    begin, stop = tl.load(cu_seqlens + seq), tl.load(cu_seqlens + seq + 1)
    number = chunks_before(cu_seqlens, first, seq, CHUNK, BLOCK_S).to(tl.int64)
    i = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    used = i < size
    slot_at = state + tl.load(slots + seq) * state_slot + head * size + i
    kept = below_if(i, size, tl.load(fresh + seq) == 0)
    h = tl.load(slot_at, mask=kept, other=0.0).to(tl.float32)
    at, last_at = (number * heads + head) * size + i, (number * heads + head + 1) * CHUNK - 1
    for base in range(begin, stop, AHEAD * CHUNK):
        some, new, decay = (), (), ()
        for j in tl.static_range(AHEAD):
            exists = base + j * CHUNK < stop
            some += (below_if(i, size, exists),)
            new += (tl.load(added + at + j * heads * size, mask=some[j], other=0.0),)
            last = tl.load(sums + last_at + j * heads * CHUNK, mask=exists, other=0.0)
            decay += (exp2(last),)
        for j in tl.static_range(AHEAD):
            put(starts + at, h, some[j])
            h = tl.where(some[j], decay[j] * h + new[j], h)
            at += heads * size
        last_at += AHEAD * heads * CHUNK
    put(slot_at, h, used)


@triton.jit(do_not_specialize=["first", "n_seqs"])
def scores(
    B, B_row, C, C_row, cu_seqlens, products, groups, states, first, n_seqs,
    DOT: tl.constexpr, CHUNK: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """A tile of one group's `C B^T` within a chunk: `products` `[chunks, G, CHUNK, CHUNK]` float32.

    Tiles above the diagonal are left out: nothing there is seen.
    """
    row_blocks: tl.constexpr = CHUNK // BLOCK_T
    number, group, column = tl.program_id(0) // row_blocks, tl.program_id(1), tl.program_id(2)
    row = tl.program_id(0) % row_blocks
    seq, chunk = find_chunk(cu_seqlens, first, n_seqs, number, CHUNK, BLOCK_S)
    if seq >= n_seqs:
        return
    begin, stop = tl.load(cu_seqlens + seq) + chunk * CHUNK, tl.load(cu_seqlens + seq + 1)
    if (column > row) | (begin + row * BLOCK_T >= stop):
        return
    i, n = row * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_N)
    j = column * BLOCK_T + tl.arange(0, BLOCK_T)
    t, s = begin + i, begin + j
    C_at = C + group * states + t.to(tl.int64)[:, None] * C_row
    B_at = B + group * states + s.to(tl.int64)[None, :] * B_row
    total = tl.zeros([BLOCK_T, BLOCK_T], dtype=tl.float32)
    for base in range(0, states, BLOCK_N):
        k = base + n
        used = (t < stop)[:, None] & (k < states)[None, :]
        C_t = tl.load(C_at + k[None, :], mask=used, other=0.0)
        used = (s < stop)[None, :] & (k < states)[:, None]
        B_s = tl.load(B_at + k[:, None], mask=used, other=0.0)
        total += product(C_t, B_s, DOT)
    at = products + (number.to(tl.int64) * groups + group) * CHUNK * CHUNK
    tl.store(at + i[:, None] * CHUNK + j[None, :], total)


@triton.jit
def weights(scores_at, deltas_at, sums_at, sum_t, i, j, DIAGONAL: tl.constexpr):
    """What rows i of a chunk take of rows j: `C B^T ∘ 2^(c_i - c_j) Δ_j`; DIAGONAL: of j up to i.

    All of a block left of the diagonal is seen: its loop has no masks, which were half of it.
    """
    scores_ij, delta = tl.load(scores_at + j[None, :]), tl.load(deltas_at + j)
    between = sum_t[:, None] - tl.load(sums_at + j)[None, :]
    if DIAGONAL:
        seen = i[:, None] >= j[None, :]
        # Other differences are positive, and could overflow.
        powers = exp2(tl.where(seen, between, 0.0))
        return tl.where(seen, scores_ij * powers * delta[None, :], 0.0)
    return scores_ij * exp2(between) * delta[None, :]


@triton.jit(do_not_specialize=["first", "n_seqs"])
def outputs(
    x, x_row, C, C_row, D, head_group, cu_seqlens, deltas, sums, products, starts, y,
    heads, groups, width, states, first, n_seqs,
    DOT: tl.constexpr, CHUNK: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """BLOCK_T rows and BLOCK_P channels of one head; programs in the order of `chunk_states`."""
    row_blocks: tl.constexpr = CHUNK // BLOCK_T
    block, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    number = block // row_blocks
    seq, chunk = find_chunk(cu_seqlens, first, n_seqs, number, CHUNK, BLOCK_S)
    if seq >= n_seqs:
        return
    begin, stop = tl.load(cu_seqlens + seq) + chunk * CHUNK, tl.load(cu_seqlens + seq + 1)
    length = tl.minimum(stop - begin, CHUNK)
    top = block % row_blocks * BLOCK_T
    if top >= length:
        return
    # Rows and columns count from the chunk's start: what is aligned is seen to be.
    i, n = top + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_N)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    some_t, some_p, row = i < length, p < width, (begin + i).to(tl.int64)
    group = tl.load(head_group + head)
    of_head = number.to(tl.int64) * heads + head
    deltas_at, sums_at = deltas + of_head * CHUNK, sums + of_head * CHUNK
    sum_t = tl.load(sums_at + i)
    C_at = C + group * states + row[:, None] * C_row
    scores_at = products + (number.to(tl.int64) * groups + group) * CHUNK * CHUNK
    scores_at += i[:, None] * CHUNK
    start_at = starts + of_head * states * width

    total = tl.zeros([BLOCK_T, BLOCK_P], dtype=tl.float32)
    for n_base in range(0, states, BLOCK_N):
        k = n_base + n
        C_t = tl.load(C_at + k[None, :], mask=some_t[:, None] & (k < states)[None, :], other=0.0)
        at = start_at + k[:, None] * width + p[None, :]
        h = tl.load(at, mask=(k < states)[:, None] & some_p[None, :], other=0.0)
        total += product(C_t, h, DOT)
    total *= exp2(sum_t)[:, None]

    x_at = x + head * width + p[None, :]
    for base in range(0, top, BLOCK_T):
        j = base + tl.arange(0, BLOCK_T)
        taken = weights(scores_at, deltas_at, sums_at, sum_t, i, j, False)
        row_j = (begin + j).to(tl.int64)
        x_j = tl.load(x_at + row_j[:, None] * x_row, mask=some_p[None, :], other=0.0)
        total += product(taken, x_j, DOT)
    taken = weights(scores_at, deltas_at, sums_at, sum_t, i, i, True)
    used = some_t[:, None] & some_p[None, :]
    x_t = tl.load(x_at + row[:, None] * x_row, mask=used, other=0.0)
    total += product(taken, x_t, DOT)
    total += tl.load(D + head).to(tl.float32) * x_t.to(tl.float32)
    put(y + row[:, None] * heads * width + head * width + p[None, :], total, used)


@triton.jit
def update(
    x, x_row, dt, dt_row, A, B, B_row, C, C_row, D, dt_bias, head_group,
    state, state_slot, slots, fresh, y, lowest, highest, heads, width, states,
    BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token of one sequence, one head, BLOCK_P channels.

    Floor: bytes, `n * H * P * (2 N * state's itemsize + 2 b)`.
    """
    seq, head = tl.program_id(0), tl.program_id(1)
    n, p = tl.arange(0, BLOCK_N), tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    some_n, some_p = n < states, p < width
    group = tl.load(head_group + head)
    bias, rate = tl.load(dt_bias + head).to(tl.float32), tl.load(A + head).to(tl.float32)
    skip = tl.load(D + head).to(tl.float32)
    slot_at = state + tl.load(slots + seq) * state_slot + head * states * width
    slot_at += n[:, None] * width + p[None, :]
    kept = some_n[:, None] & below_if(p, width, tl.load(fresh + seq) == 0)[None, :]
    h = tl.load(slot_at, mask=kept, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    row = seq.to(tl.int64)
    # All at once: behind an exchange between threads each would be waited for by itself.
    C_t = tl.load(C + row * C_row + group * states + n, mask=some_n, other=0.0)
    B_t = tl.load(B + row * B_row + group * states + n, mask=some_n, other=0.0)
    x_t = tl.load(x + row * x_row + head * width + p, mask=some_p, other=0.0).to(tl.float32)
    delta = step_size(tl.load(dt + row * dt_row + head), bias, lowest, highest)
    B_t, C_t = B_t.to(tl.float32), C_t.to(tl.float32)
    h = tl.exp(delta * rate) * h + B_t[:, None] * (delta * x_t)[None, :]
    put(slot_at, h, some_n[:, None] & some_p[None, :])
    out = tl.sum(C_t[:, None] * h, 0) + skip * x_t
    put(y + (row * heads + head) * width + p, out, some_p)
