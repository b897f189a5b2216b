"""Triton kernels of a router: logits of a few rows, and the choice; `triton.py` launches them."""

import triton
import triton.language as tl

from sidewinder.ops.triton_math import LOG2_E, exact, exp2, reciprocal, wait_for_inputs


@triton.jit
def score_experts(
    x, x_row, weight, weight_row, logits, inputs,
    BLOCK_I: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The logit of one expert for one row, in float32.

    The first weights are asked for before the kernel waits for those that made its inputs.

    Floor: bytes, those of the weight; several rows find it in the second-level cache.
    """
    expert, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    i = tl.arange(0, BLOCK_I)
    at, x_at = weight + expert * weight_row + i, x + row * x_row + i
    w = tl.load(at, mask=i < inputs, other=0.0)
    wait_for_inputs(EARLY)
    terms = w * exact(tl.load(x_at, mask=i < inputs, other=0.0))
    for base in range(BLOCK_I, inputs, BLOCK_I):
        used = base + i < inputs
        w = tl.load(at + base, mask=used, other=0.0)
        terms += w * exact(tl.load(x_at + base, mask=used, other=0.0))
    tl.store(logits + row * tl.num_programs(0) + expert, tl.sum(terms, 0))


@triton.jit
def choose_experts(
    logits, bias, chosen, shares, n_experts, scale, least_sum,
    CHOSEN: tl.constexpr, SOFTMAX: tl.constexpr, NORMALISED: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row: its CHOSEN best, one after the other.

    Floor: bytes, those of the logits.
    """
    row = tl.program_id(0).to(tl.int64)
    e, k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    exists = e < n_experts
    wait_for_inputs(EARLY)
    value = tl.load(logits + row * n_experts + e, mask=exists, other=float("-inf"))
    if SOFTMAX:
        scores = exp2((value - tl.max(value, 0)) * LOG2_E)
        scores = tl.div_rn(scores, tl.sum(scores, 0))
    else:
        scores = reciprocal(1.0 + exp2(value * -LOG2_E))
    rank_by = scores
    if bias is not None:
        rank_by += tl.load(bias + e, mask=exists, other=0.0)
    # A number that is none counts as the least, so that whatever happens, experts are chosen that
    # exist; its share is what it is.
    rank_by = tl.where(exists & (rank_by == rank_by), rank_by, -3.0e38)
    best_of, share_of = tl.zeros([BLOCK_K], dtype=tl.int32), tl.zeros([BLOCK_K], dtype=tl.float32)
    left = exists
    for number in range(CHOSEN):
        top = tl.max(tl.where(left, rank_by, float("-inf")), 0)
        best = tl.min(tl.where(left & (rank_by == top), e, BLOCK_E), 0)
        share = tl.sum(tl.where(e == best, scores, 0.0), 0)
        best_of = tl.where(k == number, best, best_of)
        share_of = tl.where(k == number, share, share_of)
        left = left & (e != best)
    if NORMALISED:
        share_of = tl.div_rn(share_of, tl.sum(share_of, 0) + least_sum)
    at = row * CHOSEN + k
    tl.store(chosen + at, best_of, mask=k < CHOSEN)
    tl.store(shares + at, share_of * scale, mask=k < CHOSEN)
