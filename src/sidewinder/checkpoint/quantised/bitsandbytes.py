"""Matrices as bitsandbytes stores them: int8 with a scale for each row, or all values in one line,
two to a byte, with a scale for each block of the line."""

import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sidewinder.checkpoint.layouts import Shape, View
from sidewinder.checkpoint.quantised.config import Quantisation
from sidewinder.checkpoint.quantised.parts import Parts, dtype_name, per_block
from sidewinder.checkpoint.quantised.views import (
    Dequantised,
    PerBlock,
    Product,
    Ranges,
    by_parts,
    ranges_of,
)
from sidewinder.checkpoint.stored import StoredTensor

STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
"""JSON, as bytes."""

PARTS = {"weight", "SCB", "weight_format", *STATES, "weight.absmax", "weight.quant_map",
         "weight.nested_absmax", "weight.nested_quant_map"}  # fmt: skip

INT8_MOST = 127
"""The code of a row's largest magnitude, which `SCB` is."""


def matrix(parts: Parts, quantisation: Quantisation) -> StoredTensor:  # noqa: ARG001
    """The matrix of `parts`.

    Raises:
        ValueError: if they are incomplete, or do not fit each other.
    """
    weight = parts.need("weight")
    read = {torch.int8: _int8, torch.uint8: _four_bits}.get(weight.dtype)
    if read is None:
        raise parts.error(f"has a weight of {dtype_name(weight.dtype)} and what only codes need")
    shape, view = read(parts, weight)
    if parts.tensors:
        raise parts.error(f"has a {min(parts.tensors)}, which goes with no such weight")
    return StoredTensor(parts.file, shape, torch.float32, view)


def _int8(parts: Parts, weight: StoredTensor) -> tuple[Shape, View]:
    order = parts.take("weight_format")
    if order is not None and bool(order.view[()].any()):
        raise parts.error("has rows in an order for one kind of GPU (weight_format)")
    if len(weight.shape) != 2:
        raise parts.error(f"has a weight of shape {list(weight.shape)}")
    largest = per_block(parts, parts.need("SCB"), weight.shape, ())
    most = PerBlock(torch.tensor([[INT8_MOST]]), weight.shape)
    scale = Product(largest, most, divides=True)
    return weight.shape, Dequantised(weight.shape, weight.view, scale)


def _four_bits(parts: Parts, weight: StoredTensor) -> tuple[Shape, View]:
    state = _state(parts)
    table, largest = parts.need("weight.quant_map"), parts.need("weight.absmax")
    rows, columns = state.shape
    n_blocks = -(-rows * columns // state.blocksize)
    if (
        math.prod(weight.shape) != -(-rows * columns // 2)
        or table.shape != (16,)
        or largest.shape != (n_blocks,)
    ):
        raise parts.error(
            f"says that it is {[rows, columns]} in blocks of {state.blocksize}, and has "
            f"{list(weight.shape)} bytes, {list(largest.shape)} scales, {list(table.shape)} values"
        )
    scales = _scales(parts, largest, state)
    return state.shape, _Line(weight.view, state.shape, table.view[()].float(), scales)


@dataclass(frozen=True)
class _State:
    """What the state says; `nested_*`: of scales that are in few bits themselves, else 0."""

    shape: tuple[int, int]
    blocksize: int
    nested_blocksize: int
    nested_offset: float


def _state(parts: Parts) -> _State:
    stored = parts.need(*STATES)
    try:
        values = json.loads(bytes(stored.view[()].flatten().tolist()))
        rows, columns = (int(size) for size in values["shape"])
        state = _State(
            (rows, columns),
            int(values["blocksize"]),
            int(values.get("nested_blocksize", 0)),
            float(values.get("nested_offset", 0.0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise parts.error(f"has a quant_state that cannot be read ({error!r})") from error
    if min(rows, columns, state.blocksize) < 1 or state.nested_blocksize < 0:
        raise parts.error(f"has a quant_state of {values!r}")
    return state


def _scales(parts: Parts, largest: StoredTensor, state: _State) -> "_Scales":
    if largest.dtype != torch.uint8:
        return _Scales(largest.view, state.blocksize)
    table, outer = parts.need("weight.nested_quant_map"), parts.need("weight.nested_absmax")
    size = state.nested_blocksize
    if table.shape != (256,) or not size or outer.shape != (-(-largest.shape[0] // size),):
        raise parts.error(
            f"has {largest.shape[0]} scales of 8 bits, and for them {list(outer.shape)} scales of "
            f"blocks of {size} and {list(table.shape)} values"
        )
    nested = _Nested(table.view[()].float(), outer.view[()].float(), size, state.nested_offset)
    return _Scales(largest.view, state.blocksize, nested)


@dataclass(frozen=True)
class _Nested:
    """Scales that are in few bits themselves: values by code, scales of blocks, what is added."""

    table: Tensor
    scales: Tensor
    size: int
    offset: float


@dataclass(frozen=True)
class _Scales:
    """One for each `size` values in line."""

    stored: View
    size: int
    nested: _Nested | None = None

    def read(self, first: int, last: int) -> Tensor:
        """Of the values `[first, last)`."""
        block, end = first // self.size, -(-last // self.size)
        values = self.stored[(slice(block, end),)]
        if (nested := self.nested) is not None:
            outer = nested.scales[torch.arange(block, end) // nested.size]
            values = nested.table[values.int()] * outer + nested.offset
        return values.float()[torch.arange(first, last) // self.size - block]


@dataclass(frozen=True)
class _Line:
    """Rows behind one another, two values to a byte, the first in its high half.

    Whole rows are read and widened, a few at a time, whatever columns are asked for: scales go on
    from the end of a row to the next.
    """

    data: View
    shape: tuple[int, int]
    table: Tensor
    scales: _Scales

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor:
        ranges = ranges_of(index, self.shape)
        start, stop = ranges[1]
        return by_parts(ranges, self._read, wider=self.shape[1] // max(1, stop - start))

    def _read(self, ranges: Ranges) -> Tensor:
        (row, end), columns = ranges
        first, last = row * self.shape[1], end * self.shape[1]
        data = self.data[(slice(first // 2, -(-last // 2)),)].flatten()
        codes = torch.stack((data >> 4, data & 15), dim=-1).flatten()
        values = self.table[codes.narrow(0, first % 2, last - first).int()]
        values *= self.scales.read(first, last)
        return values.view(end - row, self.shape[1])[:, slice(*columns)]
