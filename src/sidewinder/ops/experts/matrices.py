"""The weights of a layer's experts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sidewinder.quantise import QuantisedWeight

if TYPE_CHECKING:
    from sidewinder.layers.weights import Weight

ALIGNMENT = 64
"""Bytes; of whatever torch allocates. Offsets are then multiples of 16 elements."""

FEW_ROWS = 8
"""On GPUs: up to so many, each row reads its experts' matrices by itself; what several read is in
the second-level cache. More are grouped by expert first."""

MOST_ARRANGED = 512
"""On GPUs: up to so many pairs of a row and an expert, one program puts them in order, where
torch's sort would be several launches that wait for each other. More keep one program too long."""


@dataclass(frozen=True, eq=False)
class ExpertMatrices:
    """One rank's share of a layer's experts.

    Attributes:
        gate: `[f_local, d]` of every expert; None: experts without a gate.
        up: `[f_local, d]` of every expert.
        down: `[d, f_local]` of every expert.
    """

    gate: "tuple[Weight, ...] | None"
    up: "tuple[Weight, ...]"
    down: "tuple[Weight, ...]"

    @property
    def widths(self) -> tuple[int, int]:
        """`d` and `f_local`."""
        d, f_local = self.down[0].shape
        return d, f_local

    @property
    def base(self) -> Tensor:
        """What `offsets` count from."""
        return _values(self.up[0])

    @cached_property
    def offsets(self) -> Tensor:
        """Where the matrices are: int64 `[3, E]` on their device, elements from `base` on, of gate
        (or up again), up and down. All must be contiguous, of one dtype; not packed."""
        return self._table(_values)

    @property
    def scale_base(self) -> Tensor:
        """What `scale_offsets` count from."""
        return _scales(self.up[0])

    @cached_property
    def scale_offsets(self) -> Tensor:
        """Where the scales of int8 matrices are, as `offsets`."""
        return self._table(_scales)

    def _table(self, part_of: Callable[["Weight"], Tensor]) -> Tensor:
        base = part_of(self.up[0])
        start = _address(base)
        parts = (self.gate or self.up, self.up, self.down)
        table = [[(_address(part_of(each)) - start) // base.itemsize for each in p] for p in parts]
        return torch.tensor(table, dtype=torch.int64, device=base.device)


def _values(matrix: "Weight") -> Tensor:
    if isinstance(matrix, QuantisedWeight):
        return matrix.values
    assert isinstance(matrix, Tensor), "kernels take no packed matrices"
    return matrix


def _scales(matrix: "Weight") -> Tensor:
    assert isinstance(matrix, QuantisedWeight), "only int8 matrices have scales"
    return matrix.scales


def _address(matrix: Tensor) -> int:
    assert matrix.is_contiguous(), "rows lie one after another"
    address = 0 if matrix.is_meta else matrix.data_ptr()
    assert address % ALIGNMENT == 0, "kernels load several weights at once"
    return address
