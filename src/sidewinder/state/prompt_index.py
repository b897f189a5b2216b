"""Places of keys and values for steps with prompts of a fixed shape, computed on the device."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sidewinder.state.batch import PageTables, Sequences
from sidewinder.state.decode_index import DecodeIndex
from sidewinder.state.kv_index import RowBlocks


@dataclass(frozen=True)
class PromptIndex:
    """What `KVIndex` is, of sequences whose lengths only the device knows. Triton's kernels only.

    A sequence may have more rows than its pages hold (padding, in a spare page): those beyond are
    stored in the last place, and see what the pages hold.

    Attributes:
        seqs: the step's sequences, of a fixed shape.
        starts: int64 `[S]`, how many tokens each has stored.
        read: int64 `[S, L]`, the places of all tokens of each; beyond its length, of whatever its
            page table names.
    """

    seqs: Sequences
    starts: Tensor
    read: Tensor
    _blocks: dict[int, RowBlocks] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @staticmethod
    def of(tables: PageTables, seqs: Sequences, page_size: int) -> "PromptIndex":
        """From page tables; `L` is what their pages hold."""
        return PromptIndex(seqs, tables.starts, tables.places(page_size))

    @property
    def n_singles(self) -> int:
        """Leading sequences of one token."""
        return self.seqs.n_decodes

    @property
    def prompt_rows(self) -> int:
        """How many rows the sequences behind them have."""
        return self.seqs.n_tokens - self.n_singles

    @cached_property
    def positions(self) -> Tensor:
        """int64 `[T]`, the place of each token of the batch in its text."""
        return self._rows - self.seqs.cu_seqlens[self._owners] + self.starts[self._owners]

    @cached_property
    def write(self) -> Tensor:
        """int64 `[T]`, the place of each token of the batch."""
        return self.read[self._owners, self.positions.clamp(max=self.read.shape[1] - 1)]

    @cached_property
    def places(self) -> Tensor:
        """int64: what the pages of each prompt hold, prompt after prompt."""
        return self.read[self.n_singles :].flatten()

    @cached_property
    def singles(self) -> DecodeIndex:
        """Of the leading single tokens."""
        n = self.n_singles
        starts = self.starts[:n]
        return DecodeIndex(self.write[:n], self.read[:n], starts + 1, starts)

    @cached_property
    def _rows(self) -> Tensor:
        return torch.arange(self.seqs.n_tokens, device=self.read.device)

    @cached_property
    def _owners(self) -> Tensor:
        """int64 `[T]`, the sequence of each row."""
        return _intervals(self._rows, self.seqs.cu_seqlens[1:])

    def blocks(self, rows: int) -> RowBlocks:
        """The prompts' new tokens in blocks of at most `rows` of them, as many as there can be;
        those that are left over have no rows, and see nothing. Made once, of some twenty kernels:
        every attention call of a step asks for them."""
        if rows not in self._blocks:
            self._blocks[rows] = self._cut(rows)
        return self._blocks[rows]

    def _cut(self, rows: int) -> RowBlocks:
        n, capacity = self.n_singles, self.read.shape[1]
        assert rows <= capacity, "a block's own rows have places"
        begins, ends = self.seqs.cu_seqlens[n:-1].long(), self.seqs.cu_seqlens[n + 1 :].long()
        last_blocks = ((ends - begins + rows - 1) // rows).cumsum(0)
        count = self.prompt_rows // rows + len(begins)
        number = torch.arange(count, device=self.read.device)
        owner = _intervals(number, last_blocks).clamp_(max=len(begins) - 1)
        before = last_blocks[owner] - (ends - begins + rows - 1)[owner] // rows
        offset = (number - before) * rows
        first = begins[owner] + offset
        some = (ends[owner] - first).clamp_(min=0, max=rows)
        position = torch.minimum(self.starts[n:][owner] + offset, capacity - some) * (some > 0)
        table = torch.stack([first, some, position, owner * capacity], dim=1)
        return RowBlocks(table, (capacity,) * count)


def _intervals(numbers: Tensor, ends: Tensor) -> Tensor:
    """The interval that each of `numbers` is in, of those that end before `ends`, in order."""
    return (numbers[:, None] >= ends[None, :]).sum(1)
