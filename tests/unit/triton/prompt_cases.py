"""Prompts whose keys and values lie in scattered pages among pages of NaN."""

from typing import Any

import torch
from ops_cases import make_case

from sidewinder.state.batch import pack
from sidewinder.state.kv import PagedKV
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
