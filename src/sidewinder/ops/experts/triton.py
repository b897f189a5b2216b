"""Experts on GPUs: a few rows pair by pair, more of them in groups that chose the same expert.

Nothing waits for the device: launches are as large as the rows can need, and a graph can hold them.
"""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from sidewinder.ops.experts import int8_kernels, kernels
from sidewinder.ops.experts.matrices import FEW_ROWS, MOST_ARRANGED, ExpertMatrices
from sidewinder.ops.launching import blocks, early, launch, power_of_two
from sidewinder.quantise import QuantisedWeight

OPERANDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

PAIR_BLOCK, PAIR_INPUTS, PAIR_WARPS = 4, 512, 4
"""Outputs and inputs of a program of one pair."""

GROUP_BLOCK, GROUP_ROW_BYTES, GROUP_WARPS, GROUP_STAGES = 64, 128, 4, 3
"""Outputs of a program of a group, and bytes of inputs that it has of each row at a time; with int8
matrices as many inputs as share a scale."""

ARRANGE_BLOCK, ARRANGE_WARPS = 1 << 14, 8
"""Pairs that are put in order at once, times the experts each may have: 64 numbers a thread."""


class _Kind(NamedTuple):
    """What differs with how matrices are stored.

    Attributes:
        pair_inner, pair_outer, group_inner, group_outer: the kernels.
        where: their arguments that say where matrices are, and scales.
        group: inputs that share a scale, or nothing.
    """

    pair_inner: Any
    pair_outer: Any
    group_inner: Any
    group_outer: Any
    where: tuple[Tensor, ...]
    group: dict[str, int]

    @staticmethod
    def of(matrices: ExpertMatrices) -> "_Kind":
        where, first = (matrices.base, matrices.offsets), matrices.up[0]
        if isinstance(first, QuantisedWeight):
            return _Kind(
                int8_kernels.int8_pair_inner, int8_kernels.int8_pair_outer,
                int8_kernels.int8_group_inner, int8_kernels.int8_group_outer,
                (*where, matrices.scale_base, matrices.scale_offsets), {"GROUP": first.group_size},
            )  # fmt: skip
        return _Kind(
            kernels.pair_inner, kernels.pair_outer, kernels.group_inner, kernels.group_outer,
            where, {},
        )  # fmt: skip

    def pair_block(self, inputs: int) -> int:
        """Inputs of a program of one pair at a time: whole groups."""
        return power_of_two(inputs, least=self.group.get("GROUP", 1), most=PAIR_INPUTS)

    def group_block(self, name: str, inputs: int, dtype: torch.dtype) -> dict[str, int]:
        """Inputs of a program of a group at a time, as the constant `name`."""
        if self.group:
            return self.group
        return {name: power_of_two(inputs, least=16, most=GROUP_ROW_BYTES // dtype.itemsize)}


def experts(
    x: Tensor, matrices: ExpertMatrices, chosen: Tensor, shares: Tensor, activation: str
) -> Tensor:
    """As `reference.experts`."""
    assert x.stride(1) == 1, "rows are contiguous"
    assert chosen.is_contiguous(), "pairs lie one after another"
    run = _pair_by_pair if len(x) <= FEW_ROWS else _in_groups
    return run(x, matrices, chosen, shares, activation)


def _pair_by_pair(
    x: Tensor, matrices: ExpertMatrices, chosen: Tensor, shares: Tensor, activation: str
) -> Tensor:
    (rows, inputs), (outputs, width), k = x.shape, matrices.widths, chosen.shape[1]
    n_experts, kind = len(matrices.up), _Kind.of(matrices)
    inner = torch.empty(rows * k, width, dtype=x.dtype, device=x.device)
    launch(
        kind.pair_inner,
        (rows * k, blocks(width, PAIR_BLOCK)),
        x, x.stride(0), *kind.where, chosen, inner, n_experts, width, inputs,
        K=k, GATED=matrices.gate is not None, ACTIVATION=activation, BLOCK_F=PAIR_BLOCK,
        BLOCK_I=kind.pair_block(inputs), num_warps=PAIR_WARPS, **kind.group, **early(),
    )  # fmt: skip
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    launch(
        kind.pair_outer,
        (rows, blocks(outputs, PAIR_BLOCK)),
        inner, *kind.where, chosen, shares, y, n_experts, outputs, width,
        K=k, BLOCK_O=PAIR_BLOCK, BLOCK_F=kind.pair_block(width), num_warps=PAIR_WARPS,
        **kind.group, **early(),
    )  # fmt: skip
    return y


def _in_groups(
    x: Tensor, matrices: ExpertMatrices, chosen: Tensor, shares: Tensor, activation: str
) -> Tensor:
    (rows, inputs), (outputs, width), k = x.shape, matrices.widths, chosen.shape[1]
    n_experts, kind, pairs = len(matrices.up), _Kind.of(matrices), rows * k
    block_t = power_of_two(pairs // n_experts, least=16, most=64)
    starts, order = _by_expert(chosen, n_experts)
    most_blocks = min(pairs, n_experts) + pairs // block_t
    sizes = {
        "DOT": OPERANDS[x.dtype], "BLOCK_E": power_of_two(n_experts), "BLOCK_T": block_t,
        "num_warps": GROUP_WARPS, "num_stages": GROUP_STAGES,
    }  # fmt: skip
    inner = torch.empty(pairs, width, dtype=x.dtype, device=x.device)
    launch(
        kind.group_inner,
        (most_blocks, blocks(width, GROUP_BLOCK)),
        x, x.stride(0), *kind.where, starts, order, inner, n_experts, width, inputs,
        K=k, GATED=matrices.gate is not None, ACTIVATION=activation, BLOCK_F=GROUP_BLOCK,
        **kind.group_block("BLOCK_I", inputs, x.dtype), **sizes,
    )  # fmt: skip
    terms = torch.empty(pairs, outputs, dtype=x.dtype, device=x.device)
    launch(
        kind.group_outer,
        (most_blocks, blocks(outputs, GROUP_BLOCK)),
        inner, *kind.where, starts, order, shares, terms, n_experts, outputs, width,
        BLOCK_O=GROUP_BLOCK, **kind.group_block("BLOCK_F", width, x.dtype), **sizes,
    )  # fmt: skip
    return terms.view(rows, k, outputs).sum(1)


def _by_expert(chosen: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """Pairs in the order of their experts, those of one as they come.

    Returns:
        int32 `[n_experts + 1]`, where each expert's begin, and the numbers of pairs, int64
        `[pairs]`.
    """
    pairs, device = chosen.numel(), chosen.device
    if pairs > MOST_ARRANGED:
        by_expert, order = chosen.flatten().sort(stable=True)
        numbers = torch.arange(n_experts + 1, dtype=torch.int32, device=device)
        return torch.searchsorted(by_expert, numbers, out_int32=True), order
    starts = torch.empty(n_experts + 1, dtype=torch.int32, device=device)
    order = torch.empty(pairs, dtype=torch.int64, device=device)
    block_e = power_of_two(n_experts)
    launch(
        kernels.arrange,
        (1,),
        chosen, starts, order, pairs, n_experts,
        BLOCK_E=block_e, BLOCK_P=power_of_two(pairs, least=16, most=ARRANGE_BLOCK // block_e),
        num_warps=ARRANGE_WARPS, **early(),
    )  # fmt: skip
    return starts, order
