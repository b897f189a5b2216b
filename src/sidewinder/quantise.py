"""Weights in int8 with one scale per group of inputs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP_SIZES = (32, 64, 128)

LARGE_MATRICES = (
    ".in_proj.weight",
    ".out_proj.weight",
    ".linear.weight",
    ".q.weight",
    ".k.weight",
    ".v.weight",
    ".o.weight",
    ".gate.weight",
    ".up.weight",
    ".down.weight",
)
"""Parameters that become int8. What steers the recurrence (x_proj, dt_proj) is small, and stays, as
adapters do."""


@dataclass(frozen=True)
class Int8Weight:
    """A weight matrix `[o, i]` in int8: `weight[r, c] ≈ values[r, c] * scales[r, c // group_size]`.

    Attributes:
        values: int8 `[o, i]`, within ±127; row stride ≥ i.
        scales: float32 `[o, ceil(i / group_size)]`, of values that bfloat16 holds too: packed
            weights keep them so, and read 3 % fewer bytes (`packing.PackedWeight`).
        group_size: inputs that share a scale; one of `GROUP_SIZES`.
    """

    values: Tensor
    scales: Tensor
    group_size: int

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def __getitem__(self, rows: slice) -> "Int8Weight":
        return Int8Weight(self.values[rows], self.scales[rows], self.group_size)

    def dequantise(self) -> Tensor:
        """The weight in float32, `[o, i]`, each product rounded once."""
        scales = self.scales.repeat_interleave(self.group_size, dim=1)
        return self.values.float() * scales[:, : self.values.shape[1]]


def quantise(weight: Tensor, group_size: int = 64) -> Int8Weight:
    """Round `weight` to int8, symmetrically, with the largest magnitude of each group at ±127.

    A group of zeros gets scale 0. Groups run along the inputs and do not cross rows, so slicing a
    weight along its outputs, or along its inputs at multiples of `group_size`, before or after
    gives the same.

    Args:
        weight: `[o, i]`, finite.
        group_size: one of `GROUP_SIZES`; the last group of a row may be shorter.

    Raises:
        ValueError: for another group size, another number of dimensions, or values that are not
            finite.
    """
    if group_size not in GROUP_SIZES:
        choices = ", ".join(map(str, GROUP_SIZES))
        raise ValueError(f"group_size={group_size} is not one of {choices}")
    if weight.dim() != 2:
        raise ValueError(f"int8 weights are matrices; this one has {weight.dim()} dimensions")
    outputs, inputs = weight.shape
    n_groups = -(-inputs // group_size)
    padded = torch.zeros(outputs, n_groups * group_size)
    padded[:, :inputs] = weight
    groups = padded.view(outputs, n_groups, group_size)
    # The largest magnitude is still ±127: rounding moves it by a quarter of a step at most.
    scales = (groups.abs().amax(-1) / 127).bfloat16().float()
    if not scales.isfinite().all():
        raise ValueError("a weight that is not finite cannot be quantised")
    divisors = torch.where(scales > 0, scales, 1)[..., None]
    values = (groups / divisors).round_().clamp_(-127, 127).to(torch.int8)
    return Int8Weight(values.view(outputs, -1)[:, :inputs].contiguous(), scales, group_size)


def quantise_weights(
    weights: Mapping[str, Tensor], tie_embeddings: bool
) -> dict[str, Tensor | Int8Weight]:
    """A rank's weights with the large matrices and `lm_head` in int8, the others as they are.

    Looking up a token reads one row of the embedding and logits read all of it, so where the two
    are tied the table stays and an int8 `lm_head.weight` is added: fewer bytes per step, not less
    memory for the table.

    Args:
        weights: by our names (docs/architecture.md).
        tie_embeddings: whether `lm_head` is the embedding.
    """
    head = "embedding.weight" if tie_embeddings else "lm_head.weight"
    quantised: dict[str, Tensor | Int8Weight] = {
        name: quantise(weight) if name.endswith(LARGE_MATRICES) else weight
        for name, weight in weights.items()
    }
    return quantised | {"lm_head.weight": quantise(weights[head])}
