"""Where a step's tokens have their keys and values, for prompts and mixed steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sidewinder.state.decode_index import DecodeIndex

ALIGNMENT = 16
"""Tables of places are as wide as a multiple of this, so that few kinds of kernels are compiled."""


@dataclass(frozen=True)
class RowBlocks:
    """The new tokens of prompts, cut into blocks, each sequence from its own first new token on.

    Attributes:
        table: int64 `[blocks, 4]` on the device: the block's first row in the batch; its rows; the
            place of the first row in its text; where its text begins in `KVIndex.places`.
        keys: how many tokens each block's last row sees, itself included; the most come first.
    """

    table: Tensor
    keys: tuple[int, ...]


@dataclass(frozen=True)
class KVIndex:
    """Where a step's tokens are stored; the same for every invocation, so built once per step.

    What only some kernels read is made when the first of them asks for it.

    Attributes:
        write: int64 `[T]`, the place (`page * page_size + offset`) of each token of the batch.
        read: for each sequence, int64 `[start + length]`, the places of all its tokens so far.
        bounds: sequence `s` has the rows from `bounds[s]` up to `bounds[s + 1]`.
        n_singles: number of leading sequences with exactly one new token each.
    """

    write: Tensor
    read: tuple[Tensor, ...]
    bounds: tuple[int, ...]
    n_singles: int
    _blocks: dict[int, RowBlocks] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @property
    def prompt_rows(self) -> int:
        """How many rows the sequences behind the leading single tokens have."""
        return self.bounds[-1] - self.bounds[self.n_singles]

    @cached_property
    def positions(self) -> Tensor:
        """int64 `[T]`, the place of each token of the batch in its text."""
        spans = zip(self.bounds[:-1], self.bounds[1:], self.read, strict=True)
        starts = [(len(places) - (stop - first), len(places)) for first, stop, places in spans]
        numbers = [position for start, stop in starts for position in range(start, stop)]
        return torch.tensor(numbers, dtype=torch.int64, device=self.write.device)

    @cached_property
    def places(self) -> Tensor:
        """int64: of all tokens of each prompt, prompt after prompt."""
        return torch.cat(self.read[self.n_singles :])

    @cached_property
    def singles(self) -> DecodeIndex:
        """Of the leading single tokens, as steps of a fixed shape have it."""
        read = self.read[: self.n_singles]
        lengths = [len(places) for places in read]
        padded = self.write.new_zeros(len(read), -(-max(lengths) // ALIGNMENT) * ALIGNMENT)
        for row, places in zip(padded, read, strict=True):
            row[: len(places)] = places
        numbers = [lengths, [n - 1 for n in lengths]]
        counts, positions = torch.tensor(numbers, dtype=torch.int64, device=padded.device)
        return DecodeIndex(self.write[: self.n_singles], padded, counts, positions)

    def blocks(self, rows: int) -> RowBlocks:
        """The prompts' new tokens in blocks of at most `rows` of them; made once."""
        if rows not in self._blocks:
            self._blocks[rows] = self._cut(rows)
        return self._blocks[rows]

    def _cut(self, rows: int) -> RowBlocks:
        found: list[Sequence[int]] = []
        text = 0
        for s in range(self.n_singles, len(self.read)):
            stop, tokens = self.bounds[s + 1], len(self.read[s])
            for first in range(self.bounds[s], stop, rows):
                found.append((first, min(rows, stop - first), tokens - (stop - first), text))
            text += tokens
        # What takes longest begins first; and neighbours need about as much memory.
        found.sort(key=lambda block: -(block[1] + block[2]))
        table = torch.tensor(found, dtype=torch.int64, device=self.write.device)
        return RowBlocks(table, tuple(block[1] + block[2] for block in found))
