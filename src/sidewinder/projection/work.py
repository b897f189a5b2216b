"""What one step asks of one rank's device: kernels, by their bytes and operations.

`counter.py` counts those of whole steps from the parts here and in `hybrid_work.py`. Symbols as in
docs/sharding.md; `item` is bytes per element.
"""

from dataclasses import dataclass

import torch

from sidewinder.config import ModelConfig
from sidewinder.ops.projected_scan.parts import MOST_FUSED
from sidewinder.quantise import BITS, GROUP_SIZE, HEAD_BITS, MANY_ROWS
from sidewinder.sharding.dims import LocalDims

KEPT = ("x_proj", "dt_proj", "adapters' A", "adapters' B")
"""Products with matrices that stay in the model's dtype where large ones are rounded."""


def integer_item(bits: int) -> float:
    """Bytes of a weight in so many bits, with its part of a scale."""
    return bits / 8 + 2 / GROUP_SIZE[bits]


@dataclass(frozen=True)
class Step:
    """One step's rows.

    Attributes:
        tokens: rows of the packed batch.
        sequences: that they belong to; as many as `tokens` in a decode step.
        sampled: rows whose logits are wanted.
        context: mean number of tokens that a row attends to (hybrids).
        fixed_shape: a graph holds it, which knows no lengths.
    """

    tokens: int
    sequences: int
    sampled: int
    context: float = 0.0
    fixed_shape: bool = False

    @property
    def is_decode(self) -> bool:
        """Whether every sequence has one token."""
        return self.tokens == self.sequences


@dataclass(frozen=True)
class Work:
    """`count` equal operators of one kernel each, on devices that cut long sequences also several.

    Attributes:
        name: the operator.
        kind: which efficiency its bytes have: "memory", "row", "conv", "scan", "attention", "ssd",
            which is also that of its operations; or "gemm", whose bytes are as "memory".
        count: how many in a step.
        bytes: memory traffic of one.
        flops: of its matrix products.
        special: exponentials and the like.
        special_before: those of a first pass, on devices that cut long sequences into chunks.
        kernels_before: kernels before the last one, on those devices.
        weight_elements: of its matrix, once.
        updates: it scans single tokens.
    """

    name: str
    kind: str
    count: int
    bytes: float
    flops: float = 0.0
    special: float = 0.0
    special_before: float = 0.0
    kernels_before: int = 0
    weight_elements: int = 0
    updates: bool = False


class KernelCounter:
    """One rank in one step, and the kernels that all parts of models are made of.

    Args:
        config, dims: the model and this rank's shares.
        step: the rows.
        dtype: of weights and activations.
        state_dtype: of the SSM state.
        fuses: a GPU: it has one kernel for a few single tokens, from x_proj's output on, and draws
            in a decode step's graph.
        apart: some deltas are quantised, so Mamba-2's squares do not travel with them.
        weight_dtype: "auto", or what large matrices are rounded to.
    """

    def __init__(
        self,
        config: ModelConfig,
        dims: LocalDims,
        step: Step,
        dtype: torch.dtype,
        state_dtype: torch.dtype,
        fuses: bool,
        apart: bool,
        weight_dtype: str = "auto",
    ) -> None:
        self.config, self.dims, self.step = config, dims, step
        self.item, self.state_item = dtype.itemsize, state_dtype.itemsize
        self.has_graphs = fuses
        self.fuses = fuses and step.is_decode and step.tokens <= MOST_FUSED
        self.apart, self.weight_dtype = apart, weight_dtype

    def weight_item(self, name: str, rows: int) -> float:
        """Bytes that each weight of a product moves; where they were widened before, all of it."""
        return self.item if rows >= MANY_ROWS else self.stored_item(name)

    def stored_item(self, name: str) -> float:
        """Bytes of each weight of a product, as it lies in memory."""
        if self.weight_dtype == "auto" or name in KEPT:
            return self.item
        return integer_item(HEAD_BITS if name == "lm_head" else BITS[self.weight_dtype])

    def gemm(self, name: str, count: int, out: int, inner: int, rows: int | None = None) -> Work:
        """`count` products of `rows` rows with an `[out, inner]` matrix."""
        rows = self.step.tokens if rows is None else rows
        moved = out * inner * self.weight_item(name, rows) + rows * (out + inner) * self.item
        flops = 2.0 * rows * out * inner
        # GPUs have a kernel for one row.
        kind = "row" if rows == 1 and self.has_graphs else "gemm"
        return Work(name, kind, count, moved, flops, weight_elements=out * inner)

    def rows(self, name: str, count: int, elements: float) -> Work:
        """An operator that moves `elements` of each row."""
        return Work(name, "memory", count, self.step.tokens * elements * self.item)

    def norm(self, name: str, count: int) -> Work:
        """RMSNorm fused with the residual, which is read and written."""
        residual = 4 if self.config.residual_in_fp32 else self.item
        moved = self.step.tokens * self.config.d_model * 2 * (self.item + residual)
        return Work(name, "memory", count, moved)

    def convolution(self, width: int) -> Work:
        step, config = self.step, self.config
        states = 2 * step.sequences * (config.d_conv - 1) * width
        moved = (2 * step.tokens * width + states) * self.item
        return Work("conv", "conv", len(config.mixer_layers), moved)
