"""Paged keys and values of a hybrid's attention calls."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sidewinder.ops.store_kv import store_kv
from sidewinder.state.batch import PackedBatch
from sidewinder.state.decode_index import DecodeIndex
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.prompt_index import PromptIndex
from sidewinder.state.spec import StateSpec


class PagedKV:
    """Keys and values, `[n_invocations, n_pages, page_size, heads_local, head_dim]` each.

    Args:
        spec: sizes.
        n_pages, page_size: capacity; tokens per page.
        dtype, device: of the storage.
        poison: fill them with NaN.
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
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)
        if poison:
            self.k.fill_(torch.nan)
            self.v.fill_(torch.nan)

    def index(self, batch: PackedBatch) -> KVIndex:
        """Places of the batch's tokens by its page tables."""
        assert len(batch.page_tables) == batch.seqs.n_seqs, "a page table for every sequence"
        bounds = batch.seqs.bounds
        read = []
        for s, table in enumerate(batch.page_tables):
            end = batch.starts[s] + bounds[s + 1] - bounds[s]
            read.append(self._places(table, end))
        write = [places[start:] for places, start in zip(read, batch.starts, strict=True)]
        return KVIndex(
            write=torch.cat(write), read=tuple(read), bounds=bounds, n_singles=batch.seqs.n_decodes
        )

    def write(
        self, invocation: int, index: KVIndex | DecodeIndex | PromptIndex, k: Tensor, v: Tensor
    ) -> None:
        """Store the step's keys and values, `[T, heads_local, head_dim]` each."""
        store_kv(k, v, *self.of(invocation), index.write)

    def of(self, invocation: int) -> tuple[Tensor, Tensor]:
        """All pages of an invocation end to end: keys and values by place,
        `[n_pages * page_size, heads_local, head_dim]` each."""
        return self.k[invocation].flatten(0, 1), self.v[invocation].flatten(0, 1)

    def shape_of(self, n_tokens: int) -> torch.Size:
        """Shape of the keys, and of the values, of so many tokens (see `gather`)."""
        return torch.Size((self.k.shape[0], n_tokens, *self.k.shape[3:]))

    def gather(self, pages: Sequence[int], n_tokens: int) -> tuple[Tensor, Tensor]:
        """Copies of the keys and values of the first `n_tokens` tokens in `pages`,
        `[n_invocations, n_tokens, heads_local, head_dim]` each."""
        places = self._places(pages, n_tokens)
        return self.k.flatten(1, 2)[:, places], self.v.flatten(1, 2)[:, places]

    def fill(self, pages: Sequence[int], k: Tensor, v: Tensor) -> None:
        """Store what `gather` gave into `pages`."""
        places = self._places(pages, k.shape[1])
        self.k.flatten(1, 2)[:, places] = k.to(self.k.device)
        self.v.flatten(1, 2)[:, places] = v.to(self.v.device)

    def copy_page(self, source: int, target: int) -> None:
        """Make `target` hold what `source` holds."""
        self.k[:, target] = self.k[:, source]
        self.v[:, target] = self.v[:, source]

    def _places(self, pages: Sequence[int], n_tokens: int) -> Tensor:
        """`page * page_size + offset` of the first `n_tokens` tokens of a text in `pages`."""
        assert len(pages) * self.page_size >= n_tokens, "too few pages for the sequence"
        numbers = torch.tensor(pages, dtype=torch.int64, device=self.k.device)
        position = torch.arange(n_tokens, device=self.k.device)
        return numbers[position // self.page_size] * self.page_size + position % self.page_size
