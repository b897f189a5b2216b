"""Triton kernels of experts: pair by pair, and in groups of rows; `triton.py` launches them.

A *pair* is a row and one of the experts that it chose, numbered `row * K + j`. Matrices are found
by their offsets (`ExpertMatrices.offsets`): gates from 0 on, `up` from `n_experts` on, `down` from
`2 * n_experts` on, all multiples of 16 elements. `order` has all pairs, those of an
expert together, from `starts[expert]` on.
"""

import triton
import triton.language as tl

from sidewinder.ops.gated_activation.kernels import activated
from sidewinder.ops.triton_math import find_chunk, product, put, rounded, wait_for_inputs


@triton.jit
def matrix_at(base, offsets, number):
    """The pointer to a matrix. (An address as such would be one that the compiler knows nothing of,
    and read from by two bytes at a time.)"""
    return base + tl.multiple_of(tl.load(offsets + number), 16)


@triton.jit
def pair_inner(
    x, x_row, base, offsets, chosen, inner, n_experts, width, inputs,
    K: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_I: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_F inner channels of one pair: `act(gate x) * (up x)`.

    Floor: bytes, those of the chosen experts' matrices, once.
    """
    wait_for_inputs(EARLY)
    pair = tl.program_id(0).to(tl.int64)
    f, i = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_I)
    expert = tl.load(chosen + pair)
    gate = matrix_at(base, offsets, expert)
    up = matrix_at(base, offsets, n_experts + expert)
    at = f.to(tl.int64)[:, None] * inputs + i[None, :]
    row = x + (pair // K) * x_row + i
    ups = tl.zeros([BLOCK_F, BLOCK_I], dtype=tl.float32)
    gates = tl.zeros([BLOCK_F, BLOCK_I], dtype=tl.float32)
    for first in range(0, inputs, BLOCK_I):
        some = first + i < inputs
        used = (f < width)[:, None] & some[None, :]
        x_i = tl.load(row + first, mask=some, other=0.0).to(tl.float32)[None, :]
        ups += tl.load(up + at + first, mask=used, other=0.0).to(tl.float32) * x_i
        if GATED:
            gates += tl.load(gate + at + first, mask=used, other=0.0).to(tl.float32) * x_i
    kind = x.dtype.element_ty
    value = rounded(tl.sum(ups, 1), kind).to(tl.float32)
    opened = rounded(tl.sum(gates, 1), kind).to(tl.float32) if GATED else value
    put(inner + pair * width + f, activated(opened, ACTIVATION) * value, f < width)


@triton.jit
def pair_outer(
    inner, base, offsets, chosen, shares, y, n_experts, outputs, width,
    K: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_F: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_O outputs of one row: the shares of its K experts, added up.

    Floor: bytes, those of the chosen experts' matrices, once.
    """
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    o, f = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_F)
    at = o.to(tl.int64)[:, None] * width + f[None, :]
    total = tl.zeros([BLOCK_O, BLOCK_F], dtype=tl.float32)
    for j in range(K):
        pair = row * K + j
        share = tl.load(shares + pair)
        down = matrix_at(base, offsets, 2 * n_experts + tl.load(chosen + pair))
        for first in range(0, width, BLOCK_F):
            some = first + f < width
            used = (o < outputs)[:, None] & some[None, :]
            u = tl.load(inner + pair * width + first + f, mask=some, other=0.0).to(tl.float32)
            weights = tl.load(down + at + first, mask=used, other=0.0).to(tl.float32)
            total += weights * (u * share)[None, :]
    put(y + row * outputs + o, tl.sum(total, 1), o < outputs)


@triton.jit
def arrange(
    chosen, starts, order, pairs, n_experts,
    BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """All pairs in the order of their experts, those of one as they come, by one program: it counts
    them, then knows where each one's place is.

    Floor: bytes, of numbers; in truth the steps that follow one another, two for BLOCK_P pairs.
    """
    e, p = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_P)
    wait_for_inputs(EARLY)
    counts = tl.zeros([BLOCK_E], dtype=tl.int32)
    for base in range(0, pairs, BLOCK_P):
        expert = tl.load(chosen + base + p, mask=base + p < pairs, other=-1)
        counts += tl.sum((expert[:, None] == e[None, :]).to(tl.int32), 0)
    free = tl.cumsum(counts, 0) - counts  # the next place of each expert
    tl.store(starts + e, free, mask=e < n_experts)
    tl.store(starts + n_experts, pairs)
    for base in range(0, pairs, BLOCK_P):
        exists = base + p < pairs
        expert = tl.load(chosen + base + p, mask=exists, other=-1)
        own = (expert[:, None] == e[None, :]).to(tl.int32)
        earlier = tl.cumsum(own, 0) - own
        place = tl.sum(own * (earlier + free[None, :]), 1)
        tl.store(order + place, (base + p).to(tl.int64), mask=exists)
        free += tl.sum(own, 0)


@triton.jit
def find_group(starts, order, n_experts, BLOCK_E: tl.constexpr, BLOCK_T: tl.constexpr):
    """The expert of this program's block, or `n_experts` if there is none; its pairs, and which of
    them exist."""
    expert, block = find_chunk(starts, 0, n_experts, tl.program_id(0), BLOCK_T, BLOCK_E)
    start = tl.load(starts + expert)
    end = tl.load(starts + expert + 1, mask=expert < n_experts, other=0)
    place = start + block * BLOCK_T + tl.arange(0, BLOCK_T)
    exists = place < end
    return expert, tl.load(order + place, mask=exists, other=0), exists


@triton.jit
def group_inner(
    x, x_row, base, offsets, starts, order, inner, n_experts, width, inputs,
    K: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, DOT: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """BLOCK_F inner channels of BLOCK_T pairs of one expert, by matrix units.

    Floor: operations, or the bytes of all experts that were chosen.
    """
    expert, pair, exists = find_group(starts, order, n_experts, BLOCK_E, BLOCK_T)
    if expert < n_experts:
        f, i = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_I)
        kind = x.dtype.element_ty
        gate = matrix_at(base, offsets, expert)
        up = matrix_at(base, offsets, n_experts + expert)
        at = f.to(tl.int64)[None, :] * inputs + i[:, None]
        x_at = x + (pair // K)[:, None] * x_row + i[None, :]
        ups = tl.zeros([BLOCK_T, BLOCK_F], dtype=tl.float32)
        gates = tl.zeros([BLOCK_T, BLOCK_F], dtype=tl.float32)
        for first in range(0, inputs, BLOCK_I):
            some = first + i < inputs
            used = some[:, None] & (f < width)[None, :]
            x_i = tl.load(x_at + first, mask=exists[:, None] & some[None, :], other=0.0)
            ups += product(x_i, tl.load(up + at + first, mask=used, other=0.0), DOT)
            if GATED:
                gates += product(x_i, tl.load(gate + at + first, mask=used, other=0.0), DOT)
        value = rounded(ups, kind).to(tl.float32)
        opened = rounded(gates, kind).to(tl.float32) if GATED else value
        inner_at = inner + pair[:, None] * width + f[None, :]
        mask = exists[:, None] & (f < width)[None, :]
        put(inner_at, activated(opened, ACTIVATION) * value, mask)


@triton.jit
def group_outer(
    inner, base, offsets, starts, order, shares, terms, n_experts, outputs, width,
    DOT: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_F: tl.constexpr,
):  # fmt: skip
    """BLOCK_O outputs of BLOCK_T pairs of one expert, times their shares.

    Floor: operations, or the bytes of all experts that were chosen.
    """
    expert, pair, exists = find_group(starts, order, n_experts, BLOCK_E, BLOCK_T)
    if expert < n_experts:
        o, f = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_F)
        down = matrix_at(base, offsets, 2 * n_experts + expert)
        at = o.to(tl.int64)[None, :] * width + f[:, None]
        inner_at = inner + pair[:, None] * width + f[None, :]
        total = tl.zeros([BLOCK_T, BLOCK_O], dtype=tl.float32)
        for first in range(0, width, BLOCK_F):
            some = first + f < width
            u = tl.load(inner_at + first, mask=exists[:, None] & some[None, :], other=0.0)
            used = some[:, None] & (o < outputs)[None, :]
            total += product(u, tl.load(down + at + first, mask=used, other=0.0), DOT)
        total *= tl.load(shares + pair, mask=exists, other=0.0)[:, None]
        mask = exists[:, None] & (o < outputs)[None, :]
        put(terms + pair[:, None] * outputs + o[None, :], total, mask)
