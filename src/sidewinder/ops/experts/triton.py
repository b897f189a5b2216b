"""Experts on GPUs: a few rows pair by pair, more of them in groups that chose the same expert.

Nothing waits for the device: launches are as large as the rows can need, and a graph can hold them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sidewinder.ops.experts import integer_kernels, kernels
from sidewinder.ops.experts.matrices import FEW_ROWS, MOST_ARRANGED, ExpertMatrices
from sidewinder.ops.launching import blocks, early, launch, power_of_two
from sidewinder.ops.linear.integer import OPERANDS, outputs_beside, tile_groups
from sidewinder.quantise import QuantisedWeight

PAIR_BLOCK, PAIR_INPUTS, PAIR_WARPS = 4, 512, 4
"""Outputs and inputs of a program of one pair."""

INTEGER_WARPS = 2
"""Warps of a program of one pair with integers. How many inputs it has at a time follows from their
width: 16 bytes a thread, of as many outputs side by side as leave none without work."""

GROUP_BLOCK, GROUP_ROW_BYTES, GROUP_WARPS, GROUP_STAGES = 64, 128, 4, 3
"""Outputs of a program of a group, and bytes of inputs that it has of each row at a time; with
integers as many inputs as `tile_groups` says."""

ARRANGE_BLOCK, ARRANGE_WARPS = 1 << 14, 8
"""Pairs that are put in order at once, times the experts each may have: 64 numbers a thread."""


class _Kind(NamedTuple):
    """What differs with how matrices are stored.

    Attributes:
        pair_inner, pair_outer, group_inner, group_outer: the kernels.
        where: their arguments that say where matrices are, and scales.
        integers: the first matrix of integers, or None.
    """

    pair_inner: Any
    pair_outer: Any
    group_inner: Any
    group_outer: Any
    where: tuple[Tensor, ...]
    integers: QuantisedWeight | None

    @staticmethod
    def of(matrices: ExpertMatrices) -> "_Kind":
        where, first = (matrices.base, matrices.offsets), matrices.up[0]
        if isinstance(first, QuantisedWeight):
            return _Kind(
                integer_kernels.integer_pair_inner, integer_kernels.integer_pair_outer,
                integer_kernels.integer_group_inner, integer_kernels.integer_group_outer,
                (*where, matrices.scale_base, matrices.scale_offsets), first,
            )  # fmt: skip
        return _Kind(
            kernels.pair_inner, kernels.pair_outer, kernels.group_inner, kernels.group_outer,
            where, None,
        )  # fmt: skip

    def pair_block(self, outputs: str, inputs: str, n_inputs: int) -> dict[str, int]:
        """Outputs and inputs that a program of one pair has at a time, as constants so named."""
        weight = self.integers
        if weight is None:
            block = power_of_two(n_inputs, most=PAIR_INPUTS)
            return {outputs: PAIR_BLOCK, inputs: block, "num_warps": PAIR_WARPS}
        least, most = weight.group_size, outputs_beside(1, INTEGER_WARPS, weight.bits)
        block = power_of_two(n_inputs, max(least, most // PAIR_BLOCK), most)
        beside = outputs_beside(block, INTEGER_WARPS, weight.bits)
        return {
            outputs: beside, "EACH": PAIR_BLOCK // beside, inputs: block, **self._format(),
            "num_warps": INTEGER_WARPS,
        }  # fmt: skip

    def group_block(
        self, inputs: str, n_inputs: int, dtype: torch.dtype, rows: int
    ) -> dict[str, int]:
        """Inputs that a program of a group of so many rows has at a time, as the constant so named;
        of integers their groups."""
        if self.integers is not None:
            return {"GROUPS": tile_groups(self.integers, rows, dtype), **self._format()}
        return {inputs: power_of_two(n_inputs, least=16, most=GROUP_ROW_BYTES // dtype.itemsize)}

    def _format(self) -> dict[str, int]:
        assert self.integers is not None
        return {"GROUP": self.integers.group_size, "BITS": self.integers.bits}


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
        K=k, GATED=matrices.gate is not None, ACTIVATION=activation,
        **kind.pair_block("BLOCK_F", "BLOCK_I", inputs), **early(),
    )  # fmt: skip
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    launch(
        kind.pair_outer,
        (rows, blocks(outputs, PAIR_BLOCK)),
        inner, *kind.where, chosen, shares, y, n_experts, outputs, width,
        K=k, **kind.pair_block("BLOCK_O", "BLOCK_F", width), **early(),
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
        **kind.group_block("BLOCK_I", inputs, x.dtype, block_t), **sizes,
    )  # fmt: skip
    terms = torch.empty(pairs, outputs, dtype=x.dtype, device=x.device)
    launch(
        kind.group_outer,
        (most_blocks, blocks(outputs, GROUP_BLOCK)),
        inner, *kind.where, starts, order, shares, terms, n_experts, outputs, width,
        BLOCK_O=GROUP_BLOCK, **kind.group_block("BLOCK_F", width, x.dtype, block_t), **sizes,
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
