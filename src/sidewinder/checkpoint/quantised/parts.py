"""The tensors that are stored of one matrix, and scales as one for each of its blocks."""

import math
from dataclasses import dataclass

import torch

from sidewinder.checkpoint.layouts import Shape, View
from sidewinder.checkpoint.quantised.config import Block
from sidewinder.checkpoint.quantised.views import WORD_BITS, PerBlock, Reshaped
from sidewinder.checkpoint.stored import StoredTensor


@dataclass
class Parts:
    """What is stored of one matrix, of which each is taken once."""

    module: str
    tensors: dict[str, StoredTensor]

    def __post_init__(self) -> None:
        self.file = next(iter(self.tensors.values())).file

    def take(self, *names: str) -> StoredTensor | None:
        """The one that there is of `names`."""
        found = [name for name in names if name in self.tensors]
        if len(found) > 1:
            raise self.error(f"has both {found[0]} and {found[1]}")
        return self.tensors.pop(found[0]) if found else None

    def need(self, *names: str) -> StoredTensor:
        """As `take`, and there must be one."""
        found = self.take(*names)
        if found is None:
            raise self.error(f"has no {' or '.join(names)} beside {' and '.join(self.tensors)}")
        return found

    def error(self, what: str) -> ValueError:
        """That the matrix cannot be read; it `what`."""
        return ValueError(
            f"{self.file}: {self.module} {what}; the file is incomplete, or it is quantised in a "
            "way that is not supported (docs/checkpoints.md lists those that are)"
        )


def words_of(count: int, bits: int) -> int:
    """32-bit words that `count` integers fill."""
    return -(-count * bits // WORD_BITS)


def dtype_name(dtype: torch.dtype) -> str:
    """For errors."""
    return str(dtype).removeprefix("torch.")


def per_block(
    parts: Parts,
    values: StoredTensor,
    shape: Shape,
    blocks: tuple[Block, ...],
    groups: View | None = None,
) -> PerBlock:
    """`values` as one for each block of a matrix of `shape`."""
    counts = _counts(values.shape, shape)
    if groups is not None and counts is not None:
        return PerBlock(values.view, (1,) * len(shape), groups)
    fitting = {_sizes(counts, shape, block) for block in (None, *blocks)} - {None}
    if counts is None or len(fitting) != 1:
        raise parts.error(
            f"has scales or zeros of shape {list(values.shape)}, which fit no matrix of "
            f"{list(shape)} in blocks of {' or '.join(map(str, blocks)) or 'rows'}"
        )
    view = values.view if counts == values.shape else Reshaped(values.view, counts)
    (sizes,) = fitting
    assert sizes is not None
    return PerBlock(view, sizes)


def _counts(stored: Shape, shape: Shape) -> Shape | None:
    """How many blocks there are along each dimension, however the file writes that."""
    if math.prod(stored) == 1:
        return (1,) * len(shape)
    if len(stored) == 2 * len(shape) and set(stored[1::2]) == {1}:
        stored = stored[::2]
    if len(stored) > len(shape):
        return None
    return (*stored, *(1,) * (len(shape) - len(stored)))


def _sizes(counts: Shape | None, shape: Shape, block: Block | None) -> tuple[int, ...] | None:
    """The sizes of blocks that `counts` of them fill `shape` with; None if they do not."""
    if counts is None:
        return None
    candidates = (*(1,) * (len(shape) - 2), *(block or (1, 1)))
    sizes = []
    for count, size, candidate in zip(counts, shape, candidates[-len(shape) :], strict=True):
        if count == 1:
            sizes.append(max(size, 1))
        elif count == size:
            sizes.append(1)
        elif count == -(-size // candidate):
            sizes.append(candidate)
        else:
            return None
    return tuple(sizes)
