"""Places of keys and values for steps of a fixed shape, computed on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidewinder.state.batch import PageTables


@dataclass(frozen=True)
class DecodeIndex:
    """Where sequences of one new token have their keys and values.

    Attributes:
        write: int64 `[S]`, the place of each new token.
        read: int64 `[S, L]`, the places of all tokens of each sequence; beyond its length, of
            whatever the page table names.
        lengths: int64 `[S]`, how many of them count, the new token's included.
        positions: int64 `[S]`, the place of each new token in its text.
    """

    write: Tensor
    read: Tensor
    lengths: Tensor
    positions: Tensor

    @staticmethod
    def of(tables: PageTables, page_size: int) -> "DecodeIndex":
        """From page tables; `L` is what their pages hold."""
        starts, places = tables.starts, tables.places(page_size)
        return DecodeIndex(
            write=places.gather(1, starts[:, None])[:, 0],
            read=places,
            lengths=starts + 1,
            positions=starts,
        )


class DecodeBuffers:
    """Places of single tokens in memory on the CPU that stays where it is, written by numpy, which
    takes a tenth of the time that torch needs for a few numbers.

    Args:
        n_seqs: most sequences of a step.
        n_pages: most pages of each.
        page_size: tokens of a page.
    """

    def __init__(self, n_seqs: int, n_pages: int, page_size: int) -> None:
        places = n_pages * page_size
        self._index = DecodeIndex(
            write=torch.empty(n_seqs, dtype=torch.int64),
            read=torch.empty(n_seqs, places, dtype=torch.int64),
            lengths=torch.empty(n_seqs, dtype=torch.int64),
            positions=torch.empty(n_seqs, dtype=torch.int64),
        )
        self._write, self._lengths = self._index.write.numpy(), self._index.lengths.numpy()
        self._positions = self._index.positions.numpy()
        self._read = self._index.read.numpy().reshape(n_seqs, n_pages, page_size)
        self._in_page = np.arange(page_size)
        self._tables: list[Sequence[int]] = [()] * n_seqs

    def first(self, n_seqs: int) -> DecodeIndex:
        """The rows of the first sequences."""
        index = self._index
        return DecodeIndex(
            write=index.write[:n_seqs],
            read=index.read[:n_seqs],
            lengths=index.lengths[:n_seqs],
            positions=index.positions[:n_seqs],
        )

    def fill(self, page_tables: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """Write the first rows.

        Args:
            page_tables: of each sequence the pages it holds, enough for one more token.
            starts: how many tokens it has stored.
        """
        page_size, n_pages = len(self._in_page), self._read.shape[1]
        for s, (table, start) in enumerate(zip(page_tables, starts, strict=True)):
            assert len(table) * page_size > start, "too few pages for the sequence"
            if table != self._tables[s]:  # Most steps need no page that the last one had not.
                begins = np.array(table[:n_pages])[:, None] * page_size
                self._read[s, : len(begins)] = begins + self._in_page
                self._tables[s] = table
            self._write[s] = self._read[s, start // page_size, start % page_size]
            self._lengths[s], self._positions[s] = start + 1, start
