"""The Triton kernels of experts (`kernels.py`) for matrices in 8 or 4 bits: pairs and groups, too.

Beside the matrices lie their scales, found by offsets of their own: one for each GROUP inputs of an
output, rows one after another.
"""

import triton
import triton.language as tl

from sidewinder.ops.experts.kernels import find_group, matrix_at
from sidewinder.ops.gated_activation.kernels import activated
from sidewinder.ops.linear.integer_kernels import bytes_of, row_terms, scaled_products
from sidewinder.ops.triton_math import put, rounded, wait_for_inputs


@triton.jit
def expert_terms(
    base, offsets, scale_base, scale_offsets, number, x, o, outputs, inputs,
    GROUP: tl.constexpr, BITS: tl.constexpr, EACH: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """`row_terms` of one row `x` and an expert's matrix."""
    matrix, scales = matrix_at(base, offsets, number), matrix_at(scale_base, scale_offsets, number)
    return row_terms(
        matrix, bytes_of(inputs, BITS), scales, tl.cdiv(inputs, GROUP), x, o, outputs, inputs,
        GROUP, BITS, EACH, BLOCK_I, False,
    )  # fmt: skip


@triton.jit
def integer_pair_inner(
    x, x_row, base, offsets, scale_base, scale_offsets, chosen, inner, n_experts, width, inputs,
    K: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, GROUP: tl.constexpr,
    BITS: tl.constexpr, EACH: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_I: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """EACH times BLOCK_F inner channels of one pair: `act(gate x) * (up x)`.

    Floor: bytes, those of the chosen experts' matrices, once.
    """
    wait_for_inputs(EARLY)
    pair = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * (BLOCK_F * EACH) + tl.arange(0, BLOCK_F)
    kind = x.dtype.element_ty
    expert = tl.load(chosen + pair)
    row = x + (pair // K) * x_row
    ups = expert_terms(
        base, offsets, scale_base, scale_offsets, n_experts + expert, row, f, width, inputs,
        GROUP, BITS, EACH, BLOCK_I,
    )  # fmt: skip
    gates = ups
    if GATED:
        gates = expert_terms(
            base, offsets, scale_base, scale_offsets, expert, row, f, width, inputs,
            GROUP, BITS, EACH, BLOCK_I,
        )  # fmt: skip
    for k in tl.static_range(EACH):
        here = f + k * BLOCK_F
        value = rounded(tl.sum(ups[k], 1), kind).to(tl.float32)
        opened = rounded(tl.sum(gates[k], 1), kind).to(tl.float32) if GATED else value
        put(inner + pair * width + here, activated(opened, ACTIVATION) * value, here < width)


@triton.jit
def integer_pair_outer(
    inner, base, offsets, scale_base, scale_offsets, chosen, shares, y, n_experts, outputs, width,
    K: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, EACH: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_F: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """EACH times BLOCK_O outputs of one row: the shares of its K experts, added up.

    Floor: bytes, those of the chosen experts' matrices, once.
    """
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * (BLOCK_O * EACH) + tl.arange(0, BLOCK_O)
    LANES: tl.constexpr = BLOCK_F * BITS // 128
    total = ()
    for _ in tl.static_range(EACH):
        total = total + (tl.zeros([BLOCK_O, LANES], dtype=tl.float32),)
    for j in range(K):
        pair = row * K + j
        number, share = 2 * n_experts + tl.load(chosen + pair), tl.load(shares + pair)
        terms = expert_terms(
            base, offsets, scale_base, scale_offsets, number, inner + pair * width, o, outputs,
            width, GROUP, BITS, EACH, BLOCK_F,
        )  # fmt: skip
        added = ()
        for k in tl.static_range(EACH):
            added = added + (total[k] + terms[k] * share,)
        total = added
    for k in tl.static_range(EACH):
        here = o + k * BLOCK_O
        put(y + row * outputs + here, tl.sum(total[k], 1), here < outputs)


@triton.jit
def group_terms(
    base, offsets, scale_base, scale_offsets, number, o, outputs, x_at, exists, inputs,
    GROUP: tl.constexpr, BITS: tl.constexpr, GROUPS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The outputs `o` of an expert's matrix and the rows at `x_at`, `[BLOCK_O, BLOCK_T]`."""
    matrix, scales = matrix_at(base, offsets, number), matrix_at(scale_base, scale_offsets, number)
    return scaled_products(
        matrix, bytes_of(inputs, BITS), scales, tl.cdiv(inputs, GROUP), o, outputs, x_at, exists,
        inputs, GROUP, BITS, GROUPS, DOT, False,
    )  # fmt: skip


@triton.jit
def integer_group_inner(
    x, x_row, base, offsets, scale_base, scale_offsets, starts, order, inner, n_experts, width,
    inputs, K: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, GROUP: tl.constexpr,
    BITS: tl.constexpr, GROUPS: tl.constexpr, DOT: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """BLOCK_F inner channels of BLOCK_T pairs of one expert, by matrix units.

    Floor: operations, or the bytes of all experts that were chosen.
    """
    expert, pair, exists = find_group(starts, order, n_experts, BLOCK_E, BLOCK_T)
    if expert < n_experts:
        f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
        kind = x.dtype.element_ty
        x_at = x + (pair // K) * x_row
        ups = group_terms(
            base, offsets, scale_base, scale_offsets, n_experts + expert, f, width, x_at, exists,
            inputs, GROUP, BITS, GROUPS, DOT,
        )  # fmt: skip
        value = rounded(ups, kind).to(tl.float32)
        opened = value
        if GATED:
            gates = group_terms(
                base, offsets, scale_base, scale_offsets, expert, f, width, x_at, exists,
                inputs, GROUP, BITS, GROUPS, DOT,
            )  # fmt: skip
            opened = rounded(gates, kind).to(tl.float32)
        inner_at = inner + pair[None, :] * width + f[:, None]
        mask = (f < width)[:, None] & exists[None, :]
        put(inner_at, activated(opened, ACTIVATION) * value, mask)


@triton.jit
def integer_group_outer(
    inner, base, offsets, scale_base, scale_offsets, starts, order, shares, terms, n_experts,
    outputs, width, GROUP: tl.constexpr, BITS: tl.constexpr, GROUPS: tl.constexpr,
    DOT: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """BLOCK_O outputs of BLOCK_T pairs of one expert, times their shares.

    Floor: operations, or the bytes of all experts that were chosen.
    """
    expert, pair, exists = find_group(starts, order, n_experts, BLOCK_E, BLOCK_T)
    if expert < n_experts:
        o, number = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O), 2 * n_experts + expert
        total = group_terms(
            base, offsets, scale_base, scale_offsets, number, o, outputs, inner + pair * width,
            exists, width, GROUP, BITS, GROUPS, DOT,
        )  # fmt: skip
        total *= tl.load(shares + pair, mask=exists, other=0.0)[None, :]
        mask = (o < outputs)[:, None] & exists[None, :]
        put(terms + pair[None, :] * outputs + o[:, None], total, mask)
