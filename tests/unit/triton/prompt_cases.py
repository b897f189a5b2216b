"""Prompts whose keys and values lie in scattered pages among pages of NaN."""

from typing import Any

import torch
from ops_cases import make_case

from sidewinder.state.batch import PageTables, Sequences, pack
from sidewinder.state.kv import PagedKV
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.prompt_index import PromptIndex
from sidewinder.state.spec import StateSpec

PAGE = 4


def prompts(
    new: list[int],
    stored: list[int],
    heads: int,
    kv_heads: int,
    width: int,
    dtype: torch.dtype,
    spread: float = 1.0,
) -> dict[str, Any]:
    """Arguments of `prompt_attention` for sequences of so many new tokens behind stored ones.

    Single tokens come first; scores are `spread` times as wide.
    """
    case = make_case([1], seed=sum(new) + width)
    totals = [n + before for n, before in zip(new, stored, strict=True)]
    needed = [-(-total // PAGE) for total in totals]
    n_pages = sum(needed) + 3
    pages = torch.randperm(n_pages, generator=case.generator)[: sum(needed)]
    tables = [part.tolist() for part in pages.split(needed)]
    spec = StateSpec(1, (1, 1), (1,), n_invocations=1, kv=(kv_heads, width))
    kv = PagedKV(spec, n_pages, PAGE, dtype, "cpu", poison=True)
    slots = list(range(len(new)))
    every = pack([[0] * total for total in totals], slots, None, tables)
    k, v = (case.randn(sum(totals), kv_heads, width, dtype=dtype) for _ in range(2))
    kv.write(0, kv.index(every), k, v)
    batch = pack([[0] * n for n in new], slots, stored, tables)
    keys, values = kv.of(0)
    q = case.strided(sum(new), heads, width, dtype=dtype) * spread
    scale = (width / 2) ** -0.5
    return {"q": q, "k": keys, "v": values, "index": kv.index(batch), "scale": scale}


def fixed(index: KVIndex, n_empty: int, rows: int, room: int, spare: int) -> PromptIndex:
    """The same places for a step of fixed shape, which has empty sequences, too, and in the end one
    that fills it up to `rows`, in page `spare`; each with room for so many pages."""
    bounds = [*index.bounds, *[index.bounds[-1]] * n_empty, rows]
    tables = [places[::PAGE] // PAGE for places in index.read]
    tables = [[*table.tolist(), *[spare] * (room - len(table))] for table in tables]
    tables += [[spare] * room] * (1 + n_empty)
    new = [stop - start for start, stop in zip(index.bounds[:-1], index.bounds[1:], strict=True)]
    starts = [len(places) - n for places, n in zip(index.read, new, strict=True)]
    n_seqs, n_singles = len(bounds) - 1, index.n_singles
    seqs = Sequences(
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        slots=torch.arange(n_seqs),
        sources=torch.arange(n_seqs),
        fresh=torch.zeros(n_seqs, dtype=torch.bool),
        bounds=(*range(n_singles + 1), *[rows] * (n_seqs - n_singles)),
        n_decodes=n_singles,
        fixed_shape=True,
    )
    given = PageTables(torch.tensor(tables), torch.tensor([*starts, *[0] * (1 + n_empty)]))
    return PromptIndex.of(given, seqs, PAGE)
