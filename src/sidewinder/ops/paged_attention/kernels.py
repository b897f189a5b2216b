"""Triton kernels of attention over pages; `triton.py` launches them.

A sequence's tokens are cut into splits, so that few sequences with long texts fill the card: every
split's weighted values with its largest score and sum of exponentials, then the splits are joined.
Heads are vectors of any width (464 in Zamba-7B), padded in registers only.

Floor: bytes, `2 * tokens * kv_heads * E * itemsize` (keys and values, once), as long as the query
heads of one key head, which read the same, run close together.
"""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import put


@triton.jit(do_not_specialize=["heads", "splits"])
def attend_split(
    q, q_row, k, v, read, read_row, lengths, scale, values, largest, sums,
    heads, kv_heads, width, splits,
    SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """SPLIT tokens of one sequence, one head; `values` `[S, H, splits, E]` are not normalised."""
    seq, head = tl.program_id(0).to(tl.int64) // heads, tl.program_id(0) % heads
    split = tl.program_id(1)
    begin = split * SPLIT
    end = tl.minimum(begin + SPLIT, tl.load(lengths + seq).to(tl.int32))
    if begin >= end:
        return
    e = tl.arange(0, BLOCK_E)
    some_e = e < width
    query = tl.load(q + seq * q_row + head * width + e, mask=some_e, other=0.0).to(tl.float32)
    own = head // (heads // kv_heads) * width + e
    best = tl.full([1], -float("inf"), dtype=tl.float32)
    total = tl.zeros([1], dtype=tl.float32)
    out = tl.zeros([BLOCK_E], dtype=tl.float32)
    for base in range(begin, end, BLOCK_N):
        t = base + tl.arange(0, BLOCK_N)
        some_t = t < end
        place = tl.load(read + seq * read_row + t, mask=some_t, other=0)
        at = (place * (kv_heads * width))[:, None] + own[None, :]
        used = some_t[:, None] & some_e[None, :]
        keys = tl.load(k + at, mask=used, other=0.0).to(tl.float32)
        scores = tl.sum(keys * query[None, :], 1) * scale
        scores = tl.where(some_t, scores, -float("inf"))
        better = tl.maximum(best, tl.max(scores, 0))
        weights = tl.exp(scores - better)
        shrink = tl.exp(best - better)
        new = tl.load(v + at, mask=used, other=0.0).to(tl.float32)
        out = out * shrink + tl.sum(weights[:, None] * new, 0)
        total = total * shrink + tl.sum(weights, 0)
        best = better
    number = (seq * heads + head) * splits + split
    tl.store(values + number * width + e, out, mask=some_e)
    one = tl.arange(0, 1)
    tl.store(largest + number + one, best)
    tl.store(sums + number + one, total)


@triton.jit(do_not_specialize=["heads", "splits"])
def join_splits(
    values, largest, sums, lengths, y, heads, width, splits,
    SPLIT: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One head of one sequence."""
    row = tl.program_id(0).to(tl.int64)
    n_splits = tl.cdiv(tl.load(lengths + row // heads).to(tl.int32), SPLIT)
    e = tl.arange(0, BLOCK_E)
    some_e = e < width
    best = tl.full([1], -float("inf"), dtype=tl.float32)
    total = tl.zeros([1], dtype=tl.float32)
    out = tl.zeros([BLOCK_E], dtype=tl.float32)
    one = tl.arange(0, 1)
    for split in range(n_splits):
        number = row * splits + split
        own = tl.load(largest + number + one)
        better = tl.maximum(best, own)
        shrink, weight = tl.exp(best - better), tl.exp(own - better)
        new = tl.load(values + number * width + e, mask=some_e, other=0.0)
        out = out * shrink + new * weight
        total = total * shrink + tl.load(sums + number + one) * weight
        best = better
    put(y + row * width + e, out / total, some_e)
