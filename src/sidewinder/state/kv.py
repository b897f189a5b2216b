"""Paged keys and values of a hybrid's attention calls."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sidewinder.state.allocator import Allocator
from sidewinder.state.batch import PackedBatch
from sidewinder.state.spec import StateSpec


@dataclass(frozen=True)
class KVIndex:
    """Where a step's tokens are stored; the same for every invocation, so built once per step.

    Attributes:
        write: int64 `[T]`, the place (`page * page_size + offset`) of each token of the batch.
        read: for each sequence, int64 `[start + length]`, the places of all its tokens so far.
    """

    write: Tensor
    read: tuple[Tensor, ...]


class PagedKV:
    """Keys and values, `[n_invocations, n_pages, page_size, heads_local, head_dim]` each.

    Args:
        spec: sizes.
        n_pages, page_size: capacity; tokens per page.
        dtype, device: of the storage.
        poison: fill free pages with NaN.
    """

    def __init__(
        self,
        spec: StateSpec,
        n_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        poison: bool = False,
    ) -> None:
        shape = (spec.n_invocations, n_pages, page_size, *spec.kv)
        self.page_size = page_size
        self.poison = poison
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)
        if poison:
            self.k.fill_(torch.nan)
            self.v.fill_(torch.nan)
        self._pages = Allocator(n_pages, "KV page")

    @property
    def n_free(self) -> int:
        return self._pages.n_free

    def allocate(self) -> int:
        """A free page. Raises RuntimeError when all are in use."""
        return self._pages.allocate()

    def free(self, page: int) -> None:
        """Give a page back. Raises ValueError if it is not in use."""
        self._pages.free(page)
        if self.poison:
            self.k[:, page] = torch.nan
            self.v[:, page] = torch.nan

    def index(self, batch: PackedBatch) -> KVIndex:
        """Places of the batch's tokens by its page tables."""
        assert len(batch.page_tables) == batch.seqs.n_seqs, "a page table for every sequence"
        bounds = batch.seqs.bounds
        read = []
        for s, table in enumerate(batch.page_tables):
            end = batch.starts[s] + bounds[s + 1] - bounds[s]
            assert len(table) * self.page_size >= end, "too few pages for the sequence"
            pages = torch.tensor(table, dtype=torch.int64, device=self.k.device)
            position = torch.arange(end, device=self.k.device)
            offset = position % self.page_size
            read.append(pages[position // self.page_size] * self.page_size + offset)
        write = [places[start:] for places, start in zip(read, batch.starts, strict=True)]
        return KVIndex(write=torch.cat(write), read=tuple(read))

    def write(self, invocation: int, index: KVIndex, k: Tensor, v: Tensor) -> None:
        """Store the step's keys and values, `[T, heads_local, head_dim]` each."""
        self.k[invocation].flatten(0, 1)[index.write] = k
        self.v[invocation].flatten(0, 1)[index.write] = v

    def read(self, invocation: int, places: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at `places` (one of `KVIndex.read`), `[len, heads_local, head_dim]`."""
        return (
            self.k[invocation].flatten(0, 1)[places],
            self.v[invocation].flatten(0, 1)[places],
        )
