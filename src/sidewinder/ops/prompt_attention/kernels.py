"""Triton kernels of prompts' attention over pages; `triton.py` launches them.

Heads of 464 (Zamba-7B) are too wide for attention in one kernel: a program that kept ROWS = 128
rows of sums would need all registers and, for its queries, most of the shared memory, and one of 64
rows reads keys and values twice as often. But what is wide is bound by matrix units even if the
weights of the keys go through memory: `4 E` operations for the 4 bytes that are written and read.
So there are two kernels, both products with long, pipelined loops, whatever E is:
1. `weigh`: `exp(scale q·k - m)` of ROWS rows and BLOCK_N keys in the inputs' 16-bit dtype, where m
   is the row's largest score in that tile; m and the row's sum beside it in float32;
2. `average`: the largest score of all of a row's tiles, weights brought to it, times values.
Tiles that no row of a block sees are left out. Exponents have base 2.

Floor: matrix operations, `4 E H` for each pair of a row and a key that it sees.
"""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import LOG2_E, exp2, product, put


@triton.jit
def block_at(table, number):
    """A block's first row and text, its rows, and its first row's place in its text."""
    at = table + number * 4
    first, text = tl.load(at), tl.load(at + 3)
    return first, text, tl.load(at + 1).to(tl.int32), tl.load(at + 2).to(tl.int32)


@triton.jit(do_not_specialize=["heads", "number", "tiles"])
def weigh(
    q, q_row, k, places, table, scale, weights, largest, sums, heads, kv_heads, width, number,
    tiles,
    DOT: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """BLOCK_N keys for the rows of one block and head; blocks of the table from `number` on.

    `weights` `[blocks, H, tiles, ROWS, BLOCK_N]`; `largest` and `sums` without their last axis.
    """
    block, tile, head = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.program_id(1)
    first, text, rows, position = block_at(table, number + block)
    n_keys = position + rows
    if tile * BLOCK_N >= n_keys:
        return
    i, e, n = tl.arange(0, ROWS), tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_N)
    t = tile * BLOCK_N + n
    some_i, some_t = i < rows, t < n_keys
    place = tl.load(places + text + t, mask=some_t, other=0)
    q_at = q + (first + i)[:, None] * q_row + head * width + e[None, :]
    own = head // (heads // kv_heads) * width
    k_at = k + place[:, None] * (kv_heads * width) + own + e[None, :]
    scores = tl.zeros([ROWS, BLOCK_N], dtype=tl.float32)
    for base in range(0, width, BLOCK_E):
        some_e = base + e < width
        q_e = tl.load(q_at + base, mask=some_i[:, None] & some_e[None, :], other=0.0)
        k_e = tl.load(k_at + base, mask=some_t[:, None] & some_e[None, :], other=0.0)
        scores += product(q_e, tl.trans(k_e), DOT)
    seen = (position + i)[:, None] >= t[None, :]
    scores = tl.where(seen, scores * (scale * LOG2_E), -float("inf"))
    best = tl.max(scores, 1)
    # A row that sees nothing of the tile has weights of zero, not of exp(inf - inf).
    raised = exp2(scores - tl.where(best == -float("inf"), 0.0, best)[:, None])
    row = ((block.to(tl.int64) * heads + head) * tiles + tile) * ROWS + i
    tl.store(largest + row, best)
    tl.store(sums + row, tl.sum(raised, 1))
    put(weights + row[:, None] * BLOCK_N + n[None, :], raised, None)


@triton.jit(do_not_specialize=["heads", "number", "tiles"])
def average(
    weights, largest, sums, v, places, table, y, heads, kv_heads, width, number, tiles,
    DOT: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """BLOCK_E columns of the rows of one block and head, BLOCK_T keys at a time.

    BLOCK_T divides BLOCK_N: `weigh` has written every tile of which a row of the block sees a part.
    """
    parts = tl.cdiv(width, BLOCK_E)
    block, part, head = tl.program_id(0) // parts, tl.program_id(0) % parts, tl.program_id(1)
    first, text, rows, position = block_at(table, number + block)
    if rows == 0:  # In steps of a fixed shape, whose grids are as large as they may have to be.
        return
    n_keys = position + rows
    i, s = tl.arange(0, ROWS), tl.arange(0, BLOCK_T)
    e = part * BLOCK_E + tl.arange(0, BLOCK_E)
    some_i, some_e = i < rows, e < width
    row = (block.to(tl.int64) * heads + head) * tiles * ROWS + i
    largest_at, sums_at = largest + row, sums + row
    # Every row sees the first key, so `best` is finite from the first tile on.
    best = tl.full([ROWS], -float("inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    for tile in range(tl.cdiv(n_keys, BLOCK_N)):
        own = tl.load(largest_at + tile * ROWS)
        better = tl.maximum(best, own)
        total = total * exp2(best - better) + tl.load(sums_at + tile * ROWS) * exp2(own - better)
        best = better
    weights_at = weights + row[:, None] * BLOCK_N + s[None, :]
    values_at = v + head // (heads // kv_heads) * width + e[None, :]
    step = kv_heads * width
    # Places are loaded one round ahead, so that values can be on their way several rounds ahead.
    place = tl.load(places + text + s, mask=s < n_keys, other=0)
    out = tl.zeros([ROWS, BLOCK_E], dtype=tl.float32)
    for base in range(0, n_keys, BLOCK_T):
        t = base + s
        used = (t < n_keys)[:, None] & some_e[None, :]
        values = tl.load(values_at + (place * step)[:, None], mask=used, other=0.0)
        place = tl.load(places + text + t + BLOCK_T, mask=t + BLOCK_T < n_keys, other=0)
        tile = base // BLOCK_N
        factor = exp2(tl.load(largest_at + tile * ROWS) - best)
        # `base % BLOCK_N` columns on in the tile; said so, Triton sees that loads are aligned.
        raised = tl.load(weights_at + base + tile * ((ROWS - 1) * BLOCK_N)).to(tl.float32)
        out += product(raised * factor[:, None], values, DOT)
    out_at = y + ((first + i)[:, None] * heads + head) * width + e[None, :]
    put(out_at, out / total[:, None], some_i[:, None] & some_e[None, :])
