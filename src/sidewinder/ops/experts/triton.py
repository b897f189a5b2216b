"""Experts on GPUs: a few rows pair by pair, more of them in groups that chose the same expert.

Nothing waits for the device: launches are as large as the rows can need, and a graph can hold them.
"""

import torch
import triton.language as tl
from torch import Tensor

from sidewinder.ops.experts import kernels
from sidewinder.ops.experts.matrices import FEW_ROWS, ExpertMatrices
from sidewinder.ops.launching import blocks, early, launch, power_of_two

OPERANDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

PAIR_BLOCK, PAIR_INPUTS, PAIR_WARPS = 4, 512, 4
"""Outputs and inputs of a program of one pair."""

GROUP_BLOCK, GROUP_ROW_BYTES, GROUP_WARPS, GROUP_STAGES = 64, 128, 4, 3
"""Outputs of a program of a group, and bytes of inputs that it has of each row at a time."""


def experts(
    x: Tensor, matrices: ExpertMatrices, chosen: Tensor, shares: Tensor, activation: str
) -> Tensor:
    """As `reference.experts`.

    Raises:
        ValueError: for int8 matrices, which these kernels do not take.
    """
    if not isinstance(matrices.up[0], Tensor):
        raise ValueError(
            "experts in int8 are not supported on GPUs; leave out weight_dtype, or use CPUs"
        )
    assert x.stride(1) == 1, "rows are contiguous"
    assert chosen.is_contiguous(), "pairs lie one after another"
    run = _pair_by_pair if len(x) <= FEW_ROWS else _in_groups
    return run(x, matrices, chosen, shares, activation)


def _pair_by_pair(
    x: Tensor, matrices: ExpertMatrices, chosen: Tensor, shares: Tensor, activation: str
) -> Tensor:
    (rows, inputs), (outputs, width), k = x.shape, matrices.widths, chosen.shape[1]
    n_experts, where = len(matrices.up), (matrices.base, matrices.offsets)
    inner = torch.empty(rows * k, width, dtype=x.dtype, device=x.device)
    launch(
        kernels.pair_inner,
        (rows * k, blocks(width, PAIR_BLOCK)),
        x, x.stride(0), *where, chosen, inner, n_experts, width, inputs,
        K=k, GATED=matrices.gate is not None, ACTIVATION=activation, BLOCK_F=PAIR_BLOCK,
        BLOCK_I=power_of_two(inputs, most=PAIR_INPUTS), num_warps=PAIR_WARPS, **early(),
    )  # fmt: skip
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    launch(
        kernels.pair_outer,
        (rows, blocks(outputs, PAIR_BLOCK)),
        inner, *where, chosen, shares, y, n_experts, outputs, width,
        K=k, BLOCK_O=PAIR_BLOCK, BLOCK_F=power_of_two(width, most=PAIR_INPUTS),
        num_warps=PAIR_WARPS, **early(),
    )  # fmt: skip
    return y


def _in_groups(
    x: Tensor, matrices: ExpertMatrices, chosen: Tensor, shares: Tensor, activation: str
) -> Tensor:
    (rows, inputs), (outputs, width), k = x.shape, matrices.widths, chosen.shape[1]
    n_experts, where, pairs = len(matrices.up), (matrices.base, matrices.offsets), rows * k
    block_t = power_of_two(pairs // n_experts, least=16, most=64)
    by_expert, order = chosen.flatten().sort(stable=True)
    numbers = torch.arange(n_experts + 1, dtype=torch.int32, device=x.device)
    starts = torch.searchsorted(by_expert, numbers, out_int32=True)
    most_blocks = min(pairs, n_experts) + pairs // block_t
    most_inputs = GROUP_ROW_BYTES // x.itemsize
    sizes = {
        "DOT": OPERANDS[x.dtype], "BLOCK_E": power_of_two(n_experts), "BLOCK_T": block_t,
        "num_warps": GROUP_WARPS, "num_stages": GROUP_STAGES,
    }  # fmt: skip
    inner = torch.empty(pairs, width, dtype=x.dtype, device=x.device)
    launch(
        kernels.group_inner,
        (most_blocks, blocks(width, GROUP_BLOCK)),
        x, x.stride(0), *where, starts, order, inner, n_experts, width, inputs,
        K=k, GATED=matrices.gate is not None, ACTIVATION=activation, BLOCK_F=GROUP_BLOCK,
        BLOCK_I=power_of_two(inputs, least=16, most=most_inputs), **sizes,
    )  # fmt: skip
    terms = torch.empty(pairs, outputs, dtype=x.dtype, device=x.device)
    launch(
        kernels.group_outer,
        (most_blocks, blocks(outputs, GROUP_BLOCK)),
        inner, *where, starts, order, shares, terms, n_experts, outputs, width,
        BLOCK_O=GROUP_BLOCK, BLOCK_F=power_of_two(width, least=16, most=most_inputs), **sizes,
    )  # fmt: skip
    return terms.view(rows, k, outputs).sum(1)
