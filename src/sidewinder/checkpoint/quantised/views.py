"""Views of a matrix that is stored in few bits: what a slice touches is read and becomes float32.

Shapes are the matrix's own, `[rows, columns]`, or `[experts, rows, columns]` where a file has all
experts of a layer in one tensor. `View` is what `layouts.py` reads from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sidewinder.checkpoint.layouts import Shape, View

WORD_BITS = 32

VALUES_AT_ONCE = 1 << 20
"""That are widened together: it takes several times their memory for a moment."""

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of a 4-bit float without its sign, by its code; the highest bit is the sign."""


Ranges = list[tuple[int, int]]
"""`(start, stop)` of every dimension."""


def ranges_of(index: tuple[slice, ...], shape: Shape) -> Ranges:
    """What `index` asks for, along every dimension."""
    whole = (slice(None),) * (len(shape) - len(index))
    ranges = []
    for each, size in zip((*index, *whole), shape, strict=True):
        start, stop, step = each.indices(size)
        assert step == 1, "layouts slice without steps"
        ranges.append((start, max(start, stop)))
    return ranges


def as_index(ranges: Ranges) -> tuple[slice, ...]:
    """The index of a part."""
    return tuple(slice(start, stop) for start, stop in ranges)


def by_parts(ranges: Ranges, read: Callable[[Ranges], Tensor], wider: int = 1) -> Tensor:
    """What `read` gives for a part of a matrix, put together from smaller ones.

    `wider`: how many times as many values `read` goes through.
    """
    sizes = [stop - start for start, stop in ranges]
    values = torch.empty(sizes)
    dim = next((dim for dim, size in enumerate(sizes) if size > 1), 0)
    start, stop = ranges[dim]
    step = max(1, VALUES_AT_ONCE * sizes[dim] // max(1, wider * values.numel()))
    for first in range(start, stop, step):
        last = min(first + step, stop)
        part = [*ranges[:dim], (first, last), *ranges[dim + 1 :]]
        values.narrow(dim, first - start, last - first).copy_(read(part))
    return values


@dataclass(frozen=True)
class Dequantised:
    """`(code - zero) * scale`, of every value.

    Attributes:
        shape: of the matrix.
        codes: what is stored for each value, of that shape, in another dtype than float32.
        scale: of each value.
        zero: which code stands for zero; None where it is 0.
    """

    shape: Shape
    codes: View
    scale: "PerBlock | Product"
    zero: "PerBlock | None" = None

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor:
        return by_parts(ranges_of(index, self.shape), self._read)

    def _read(self, ranges: Ranges) -> Tensor:
        values = self.codes[as_index(ranges)].float()
        if self.zero is not None:
            values -= self.zero.read(ranges)
        return values.mul_(self.scale.read(ranges))


@dataclass(frozen=True)
class PerBlock:
    """One value for every block of a matrix: the whole of it, a row, a group of columns, a tile.

    Attributes:
        values: of the blocks: as many along each dimension as there are blocks, the last of which
            may be cut off by the matrix's end.
        sizes: of a block along each dimension.
        groups: `[columns]`, the group of each, where they are not in the order of their groups.
    """

    values: View
    sizes: tuple[int, ...]
    groups: View | None = None

    def read(self, ranges: Ranges) -> Tensor:
        """The value of every element of a part, in float32, or to be broadcast over it."""
        touched = [
            (start // size, -(-stop // size))
            for (start, stop), size in zip(ranges, self.sizes, strict=True)
        ]
        if self.groups is None:
            part = as_float(self.values[as_index(touched)])
            for dim, (start, stop) in enumerate(ranges):
                if part.shape[dim] > 1 and self.sizes[dim] > 1:
                    block = torch.arange(start, stop) // self.sizes[dim] - touched[dim][0]
                    part = part.index_select(dim, block)
            return part
        *rows, columns = ranges
        assert all(size == 1 for size in self.sizes[:-1]), "groups are columns of rows"
        part = as_float(self.values[as_index(rows)])
        return part.index_select(-1, self.groups[(slice(*columns),)].long())


@dataclass(frozen=True)
class Product:
    """A scale that is stored as two: multiplied with each other, before anything else.

    Attributes:
        inner: of every block.
        outer: of the whole matrix, or of each expert.
        divides: `outer` divides `inner` instead.
    """

    inner: PerBlock
    outer: PerBlock
    divides: bool = False

    def read(self, ranges: Ranges) -> Tensor:
        """As `PerBlock.read`."""
        inner, outer = self.inner.read(ranges), self.outer.read(ranges)
        return inner / outer if self.divides else inner * outer


def as_float(scale: Tensor) -> Tensor:
    """A scale in float32; a byte of an integer type is an exponent of two (E8M0)."""
    if scale.dtype == torch.uint8:
        scale = scale.view(torch.float8_e8m0fnu)
    return scale.float()


@dataclass(frozen=True)
class Reshaped:
    """A small tensor of which the file has another shape: it is read as a whole."""

    values: View
    shape: Shape

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor:
        return self.values[()].reshape(self.shape)[index]


@dataclass(frozen=True)
class TransposedView:
    """A tensor `[columns, rows]` as `[rows, columns]`."""

    inner: View

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor:
        rows, columns = (*index, slice(None), slice(None))[:2]
        return self.inner[(columns, rows)].T


@dataclass(frozen=True)
class PackedIntegers:
    """Integers of `bits` bits, as many to a 32-bit word as fit.

    Attributes:
        words: as `shape`, with the words that `dim` takes.
        shape: of the integers.
        bits: of each, a divisor of 32.
        dim: along which they are packed.
        offset: what is stored for zero.
        less: by how much what is stored is less, modulo `2**bits`, than what is meant.
        places: in a word of the integers in it, counted from the lowest; none: in their order.
    """

    words: View
    shape: Shape
    bits: int
    dim: int
    offset: int
    less: int = 0
    places: tuple[int, ...] = ()

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor:
        ranges = ranges_of(index, self.shape)
        start, stop = ranges[self.dim]
        each = WORD_BITS // self.bits
        first = start // each
        ranges[self.dim] = (first, -(-stop // each))
        words = self.words[as_index(ranges)].unsqueeze(self.dim + 1)
        shifts = self.bits * torch.tensor(self.places or range(each), dtype=torch.int32)
        spread = shifts.view(-1, *(1,) * (len(self.shape) - self.dim - 1))
        codes = ((words >> spread) + self.less) & ((1 << self.bits) - 1)
        codes = codes.flatten(self.dim, self.dim + 1)
        return codes.narrow(self.dim, start - first * each, stop - start) - self.offset


@dataclass(frozen=True)
class PackedFloats:
    """4-bit floats (E2M1), two to a byte along the last dimension, the first in its low half."""

    data: View
    shape: Shape

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor:
        *rows, (start, stop) = ranges_of(index, self.shape)
        first = start // 2
        data = self.data[as_index([*rows, (first, -(-stop // 2))])]
        codes = torch.stack((data & 15, data >> 4), dim=-1).flatten(-2)
        values = torch.tensor((*_E2M1, *(-value for value in _E2M1)))
        return values[codes.narrow(-1, start - 2 * first, stop - start).int()]
