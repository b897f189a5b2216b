"""Triton kernels of attention over pages; `triton.py` launches them.

A sequence's tokens are cut into splits, so that few sequences with long texts fill the card: every
split's weighted values with its largest score and sum of exponentials, then the splits are joined.
Heads are vectors of any width (464 in Zamba-7B), padded in registers only: PARTS parts of PART
numbers each, as many as the threads of a warp load at once. So a warp has whole heads of its own
tokens, and until a split ends no warp needs another: each of BLOCK_N places in a tile has a largest
score, a sum and weighted values of its own. Scores are in units of log2(e), for powers of two.

Floor: bytes, `2 * tokens * kv_heads * E * itemsize` (keys and values, once), as long as the query
heads of one key head, which read the same, run close together.
"""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import LOG2_E, exp2, put


@triton.jit(do_not_specialize=["heads", "splits"])
def attend_split(
    q, q_row, k, v, read, read_row, lengths, scale, values, largest, sums,
    heads, kv_heads, width, splits,
    SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """SPLIT tokens of one sequence, one head; `values` `[S, H, splits, E]` are not normalised."""
    seq, head = tl.program_id(0).to(tl.int64) // heads, tl.program_id(0) % heads
    split = tl.program_id(1)
    begin = split * SPLIT
    end = tl.minimum(begin + SPLIT, tl.load(lengths + seq).to(tl.int32))
    if begin >= end:
        return
    e = tl.arange(0, PARTS)[:, None, None] * PART + tl.arange(0, PART)[None, None, :]
    some_e = e < width
    query = tl.load(q + seq * q_row + head * width + e, mask=some_e, other=0.0).to(tl.float32)
    query *= scale * LOG2_E
    own = head // (heads // kv_heads) * width + e
    best = tl.full([BLOCK_N], -float("inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_N], dtype=tl.float32)
    out = tl.zeros([PARTS, BLOCK_N, PART], dtype=tl.float32)
    t = begin + tl.arange(0, BLOCK_N)
    read_at = read + seq * read_row
    place = tl.load(read_at + t, mask=t < end, other=0)
    for _ in range(begin, end, BLOCK_N):
        some_t = t < end
        used = some_t[None, :, None] & some_e
        at = (place * (kv_heads * width))[None, :, None] + own
        keys, new = tl.load(k + at, mask=used, other=0.0), tl.load(v + at, mask=used, other=0.0)
        t += BLOCK_N
        place = tl.load(read_at + t, mask=t < end, other=0)  # Of the next tokens, in good time.
        scores = tl.sum(tl.sum(keys.to(tl.float32) * query, 2), 0)
        scores = tl.where(some_t, scores, -float("inf"))
        better = tl.maximum(best, scores)
        origin = tl.where(better == -float("inf"), 0.0, better)  # No token had this place yet.
        weights, shrink = exp2(scores - origin), exp2(best - origin)
        out = out * shrink[None, :, None] + weights[None, :, None] * new.to(tl.float32)
        total = total * shrink + weights
        best = better
    most = tl.max(best, 0)
    shrink = exp2(best - most)
    number = (seq * heads + head) * splits + split
    e = tl.arange(0, PARTS)[:, None] * PART + tl.arange(0, PART)[None, :]
    tl.store(values + number * width + e, tl.sum(out * shrink[None, :, None], 1), mask=e < width)
    tl.store(largest + number, most)
    tl.store(sums + number, tl.sum(total * shrink, 0))


@triton.jit(do_not_specialize=["heads", "splits"])
def join_splits(
    values, largest, sums, lengths, y, heads, width, splits,
    SPLIT: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """One head of one sequence, from BLOCK_J splits at a time: one by one, all is waiting."""
    row = tl.program_id(0).to(tl.int64)
    n_splits = tl.cdiv(tl.load(lengths + row // heads).to(tl.int32), SPLIT)
    e, j = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_J)
    best = tl.full([1], -float("inf"), dtype=tl.float32)
    total = tl.zeros([1], dtype=tl.float32)
    out = tl.zeros([BLOCK_E], dtype=tl.float32)
    for base in range(0, n_splits, BLOCK_J):
        some_j, number = base + j < n_splits, row * splits + base + j
        own = tl.load(largest + number, mask=some_j, other=-float("inf"))
        own_sum = tl.load(sums + number, mask=some_j, other=0.0)
        used = some_j[:, None] & (e < width)[None, :]
        new = tl.load(values + number[:, None] * width + e[None, :], mask=used, other=0.0)
        better = tl.maximum(best, tl.max(own, 0))
        shrink, weights = exp2(best - better), exp2(own - better)
        out = out * shrink + tl.sum(new * weights[:, None], 0)
        total = total * shrink + tl.sum(own_sum * weights, 0)
        best = better
    put(y + row * width + e, out / total, e < width)
