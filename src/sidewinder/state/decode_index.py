"""Places of keys and values for steps of a fixed shape, computed on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sidewinder.state.batch import DecodeTables


@dataclass(frozen=True)
class DecodeIndex:
    """Where sequences of one new token have their keys and values.

    Attributes:
        write: int64 `[S]`, the place of each new token.
        read: int64 `[S, L]`, the places of all tokens of each sequence; beyond its length, of
            whatever the page table names.
        lengths: int64 `[S]`, how many of them count, the new token's included.
    """

    write: Tensor
    read: Tensor
    lengths: Tensor

    @staticmethod
    def of(tables: DecodeTables, page_size: int) -> "DecodeIndex":
        """From page tables; `L` is what their pages hold."""
        pages, starts = tables.pages, tables.starts
        position = torch.arange(pages.shape[1] * page_size, device=pages.device)
        places = pages[:, position // page_size] * page_size + position % page_size
        return DecodeIndex(
            write=places.gather(1, starts[:, None])[:, 0],
            read=places,
            lengths=starts + 1,
        )
