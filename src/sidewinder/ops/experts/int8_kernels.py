"""The Triton kernels of experts (`kernels.py`) for int8 matrices: the same pairs and groups.

Beside the matrices lie their scales, found by offsets of their own: one for each GROUP inputs of an
output, rows one after another.
"""

import triton
import triton.language as tl

from sidewinder.ops.experts.kernels import find_group, matrix_at
from sidewinder.ops.gated_activation.kernels import activated
from sidewinder.ops.linear.int8_kernels import LANE, scaled_products, scaled_terms
from sidewinder.ops.triton_math import put, rounded, wait_for_inputs


@triton.jit
def row_terms(
    matrix, scales, x, o, outputs, inputs,
    GROUP: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Terms of the outputs `o` of one row `x`, `[BLOCK_O, BLOCK_I / LANE]`, to be added up."""
    lane = LANE * tl.arange(0, BLOCK_I // LANE)
    i = lane[:, None] + tl.arange(0, LANE)[None, :]
    o_row, some_o = o.to(tl.int64), o < outputs
    at = matrix + o_row[:, None, None] * inputs + i[None, :, :]
    scale_at = scales + o_row[:, None] * tl.cdiv(inputs, GROUP) + (lane // GROUP)[None, :]
    x_at = tl.broadcast_to(x + i[None, :, :], [BLOCK_O, BLOCK_I // LANE, LANE])
    total = tl.zeros([BLOCK_O, BLOCK_I // LANE], dtype=tl.float32)
    for base in range(0, inputs, BLOCK_I):
        used = some_o[:, None, None] & (base + i < inputs)[None, :, :]
        some = some_o[:, None] & (base + lane < inputs)[None, :]
        w = tl.load(at + base, mask=used, other=0)
        scale = tl.load(scale_at + base // GROUP, mask=some, other=0.0)
        total += scaled_terms(w, tl.load(x_at + base, mask=used, other=0.0), scale)
    return total


@triton.jit
def int8_pair_inner(
    x, x_row, base, offsets, scale_base, scale_offsets, chosen, inner, n_experts, width, inputs,
    K: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_I: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_F inner channels of one pair: `act(gate x) * (up x)`.

    Floor: bytes, those of the chosen experts' matrices, once.
    """
    wait_for_inputs(EARLY)
    pair = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    kind = x.dtype.element_ty
    expert = tl.load(chosen + pair)
    row, number = x + (pair // K) * x_row, n_experts + expert
    up, scales = matrix_at(base, offsets, number), matrix_at(scale_base, scale_offsets, number)
    ups = row_terms(up, scales, row, f, width, inputs, GROUP, BLOCK_F, BLOCK_I)
    value = rounded(tl.sum(ups, 1), kind).to(tl.float32)
    opened = value
    if GATED:
        gate = matrix_at(base, offsets, expert)
        scales = matrix_at(scale_base, scale_offsets, expert)
        gates = row_terms(gate, scales, row, f, width, inputs, GROUP, BLOCK_F, BLOCK_I)
        opened = rounded(tl.sum(gates, 1), kind).to(tl.float32)
    put(inner + pair * width + f, activated(opened, ACTIVATION) * value, f < width)


@triton.jit
def int8_pair_outer(
    inner, base, offsets, scale_base, scale_offsets, chosen, shares, y, n_experts, outputs, width,
    K: tl.constexpr, GROUP: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_F: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_O outputs of one row: the shares of its K experts, added up.

    Floor: bytes, those of the chosen experts' matrices, once.
    """
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    total = tl.zeros([BLOCK_O, BLOCK_F // LANE], dtype=tl.float32)
    for j in range(K):
        pair = row * K + j
        number = 2 * n_experts + tl.load(chosen + pair)
        down = matrix_at(base, offsets, number)
        scales = matrix_at(scale_base, scale_offsets, number)
        u = inner + pair * width
        terms = row_terms(down, scales, u, o, outputs, width, GROUP, BLOCK_O, BLOCK_F)
        total += terms * tl.load(shares + pair)
    put(y + row * outputs + o, tl.sum(total, 1), o < outputs)


@triton.jit
def group_terms(
    matrix, scales, o, outputs, x_at, exists, inputs, GROUP: tl.constexpr, DOT: tl.constexpr
):
    """The outputs `o` of the rows at `x_at`, `[BLOCK_O, BLOCK_T]`."""
    at = matrix + o.to(tl.int64) * inputs
    scale_at = scales + o.to(tl.int64) * tl.cdiv(inputs, GROUP)
    return scaled_products(at, scale_at, o, outputs, x_at, exists, inputs, GROUP, DOT, False)


@triton.jit
def int8_group_inner(
    x, x_row, base, offsets, scale_base, scale_offsets, starts, order, inner, n_experts, width,
    inputs, K: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, GROUP: tl.constexpr,
    DOT: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """BLOCK_F inner channels of BLOCK_T pairs of one expert, by matrix units.

    Floor: operations, or the bytes of all experts that were chosen.
    """
    expert, pair, exists = find_group(starts, order, n_experts, BLOCK_E, BLOCK_T)
    if expert < n_experts:
        f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
        kind = x.dtype.element_ty
        x_at, number = x + (pair // K) * x_row, n_experts + expert
        up, scales = matrix_at(base, offsets, number), matrix_at(scale_base, scale_offsets, number)
        ups = group_terms(up, scales, f, width, x_at, exists, inputs, GROUP, DOT)
        value = rounded(ups, kind).to(tl.float32)
        opened = value
        if GATED:
            gate = matrix_at(base, offsets, expert)
            scales = matrix_at(scale_base, scale_offsets, expert)
            gates = group_terms(gate, scales, f, width, x_at, exists, inputs, GROUP, DOT)
            opened = rounded(gates, kind).to(tl.float32)
        inner_at = inner + pair[None, :] * width + f[:, None]
        mask = (f < width)[:, None] & exists[None, :]
        put(inner_at, activated(opened, ACTIVATION) * value, mask)


@triton.jit
def int8_group_outer(
    inner, base, offsets, scale_base, scale_offsets, starts, order, shares, terms, n_experts,
    outputs, width, GROUP: tl.constexpr, DOT: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """BLOCK_O outputs of BLOCK_T pairs of one expert, times their shares.

    Floor: operations, or the bytes of all experts that were chosen.
    """
    expert, pair, exists = find_group(starts, order, n_experts, BLOCK_E, BLOCK_T)
    if expert < n_experts:
        o, number = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O), 2 * n_experts + expert
        down = matrix_at(base, offsets, number)
        scales = matrix_at(scale_base, scale_offsets, number)
        u_at = inner + pair * width
        total = group_terms(down, scales, o, outputs, u_at, exists, width, GROUP, DOT)
        total *= tl.load(shares + pair, mask=exists, other=0.0)[None, :]
        mask = (o < outputs)[:, None] & exists[None, :]
        put(terms + pair[None, :] * outputs + o[:, None], total, mask)
