"""How one stored tensor maps to ours: the stored shape, and how to read a part of it.

A layout reads the range `[start, stop)` of *our* tensor along `dim` straight from a stored tensor,
touching only the bytes that it needs. Results are views of the file where possible; copy them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


class View(Protocol):
    """A stored tensor that reads what is asked of it (safetensors' slice, or a mapped tensor)."""

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor: ...


class Layout(Protocol):
    """One way of storing a parameter."""

    @property
    def dim(self) -> int:
        """The dimension of our tensor along which ranges are read."""
        ...

    def stored_shape(self, shape: Shape) -> Shape:
        """Shape in the file of a parameter that has `shape` with us."""
        ...

    def read(self, view: View, start: int, stop: int) -> Tensor:
        """Our tensor's part `[start, stop)` along `dim`."""
        ...


@dataclass(frozen=True)
class Plain:
    """Stored as we hold it."""

    dim: int = 0

    def stored_shape(self, shape: Shape) -> Shape:
        return shape

    def read(self, view: View, start: int, stop: int) -> Tensor:
        return view[(*(slice(None),) * self.dim, slice(start, stop))]


@dataclass(frozen=True)
class Transposed:
    """Stored `[d, N]`, ours `[N, d]`."""

    dim: int = 1

    def stored_shape(self, shape: Shape) -> Shape:
        return shape[::-1]

    def read(self, view: View, start: int, stop: int) -> Tensor:
        return view[(slice(start, stop),)].T


@dataclass(frozen=True)
class Convolution:
    """Stored `[C, 1, K]` as torch's depthwise convolutions are, ours `[K, C]`."""

    dim: int = 1

    def stored_shape(self, shape: Shape) -> Shape:
        return (shape[1], 1, shape[0])

    def read(self, view: View, start: int, stop: int) -> Tensor:
        return view[(slice(start, stop),)][:, 0].T


@dataclass(frozen=True)
class Interleaved:
    """Zamba's in_proj: stored row `2j` is row `j` of band x, row `2j+1` row `j` of band z.

    Ours is x then z, `half` rows each. A range must lie within one band.
    """

    half: int
    dim: int = 0

    def stored_shape(self, shape: Shape) -> Shape:
        return shape

    def read(self, view: View, start: int, stop: int) -> Tensor:
        band = start // self.half
        first, last = start - band * self.half, stop - band * self.half
        assert last <= self.half, "an interleaved range crosses from x to z"
        return view[(slice(2 * first, 2 * last),)][band::2]


@dataclass(frozen=True)
class RowsOf:
    """Rows from `first` on of a stored tensor of `total` rows, which packs several parameters."""

    first: int
    total: int
    dim: int = 0

    def stored_shape(self, shape: Shape) -> Shape:
        return (self.total, *shape[1:])

    def read(self, view: View, start: int, stop: int) -> Tensor:
        return view[(slice(self.first + start, self.first + stop),)]


@dataclass(frozen=True)
class OneOf:
    """Number `index` of `total` matrices that are stored in one tensor `[total, rows, columns]`, of
    which it is the rows from `first` on, `rows` of them in all (0: it is all of them)."""

    index: int
    total: int
    first: int = 0
    rows: int = 0
    dim: int = 0

    def stored_shape(self, shape: Shape) -> Shape:
        return (self.total, self.rows or shape[0], *shape[1:])

    def read(self, view: View, start: int, stop: int) -> Tensor:
        one = slice(self.index, self.index + 1)
        if self.dim == 0:
            return view[(one, slice(self.first + start, self.first + stop))][0]
        return view[(one, slice(None), slice(start, stop))][0]


@dataclass(frozen=True)
class Multiplied:
    """Stored as `inner` says, and ours is a multiple of it: in float32, to be rounded once.

    Attributes:
        inner: how it is stored.
        multipliers: `(end, multiplier)` of bands along `dim`, one after another. A range must lie
            within one band.
    """

    inner: Layout
    multipliers: tuple[tuple[int, float], ...]

    @property
    def dim(self) -> int:
        return self.inner.dim

    def stored_shape(self, shape: Shape) -> Shape:
        return self.inner.stored_shape(shape)

    def read(self, view: View, start: int, stop: int) -> Tensor:
        end, multiplier = next(band for band in self.multipliers if start < band[0])
        assert stop <= end, "a range crosses from one multiplier to another"
        part = self.inner.read(view, start, stop)
        return part if multiplier == 1 else part.float() * multiplier


@dataclass(frozen=True)
class HeadRows:
    """Stored `[heads, head_dim, ...]`, ours `[heads * head_dim, ...]`."""

    heads: int
    head_dim: int
    dim: int = 0

    def stored_shape(self, shape: Shape) -> Shape:
        return (self.heads, self.head_dim, *shape[1:])

    def read(self, view: View, start: int, stop: int) -> Tensor:
        parts = _head_pieces(self.head_dim, start, stop)
        return torch.cat([view[(head, part)][0] for head, part in parts])


@dataclass(frozen=True)
class HeadColumns:
    """Stored `[heads, rows, head_dim]`, ours `[rows, heads * head_dim]`: heads side by side."""

    heads: int
    head_dim: int
    dim: int = 1

    def stored_shape(self, shape: Shape) -> Shape:
        return (self.heads, shape[0], self.head_dim)

    def read(self, view: View, start: int, stop: int) -> Tensor:
        parts = _head_pieces(self.head_dim, start, stop)
        return torch.cat([view[(head, slice(None), part)][0] for head, part in parts], dim=1)


@dataclass(frozen=True)
class HeadTransposed:
    """Stored `[heads, head_dim, N]`, ours `[N, heads * head_dim]`."""

    heads: int
    head_dim: int
    dim: int = 1

    def stored_shape(self, shape: Shape) -> Shape:
        return (self.heads, self.head_dim, shape[0])

    def read(self, view: View, start: int, stop: int) -> Tensor:
        return HeadRows(self.heads, self.head_dim).read(view, start, stop).T


def _head_pieces(head_dim: int, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
    """The heads that channels `[start, stop)` touch: `(index of the head, range within it)`."""
    for head in range(start // head_dim, -(-stop // head_dim)):
        first, last = max(start - head * head_dim, 0), min(stop - head * head_dim, head_dim)
        yield slice(head, head + 1), slice(first, last)
