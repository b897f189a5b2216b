"""The largest values of long rows, without sorting them.

A row is seen in blocks. If `n` blocks have a maximum of at least `t`, then at least `n` values are
at least `t`, and usually few more: so the n-th largest block maximum is a threshold that leaves
little to sort. Ties go to the lowest id everywhere.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64

CACHE_BYTES = 1 << 20
"""Rows that are worked on together: what is made of them stays in a core's cache."""


def in_cache(rows: Tensor) -> Iterator[slice]:
    """Slices of `rows` `[n, v]` of about `CACHE_BYTES` each; one for all of them off the CPU."""
    each = len(rows)
    if rows.device.type == "cpu":
        each = CACHE_BYTES // (rows.shape[1] * rows.element_size())
    each = max(1, each)
    return (slice(start, start + each) for start in range(0, len(rows), each))


def first_max(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of each row `[n, v]` and its first position; a NaN counts as the maximum."""
    if rows.device.type == "cpu" and rows.dtype == torch.float32:
        # numpy's argmax is vectorised, torch's is not: 20 times as fast at 50,000 columns.
        ids = torch.from_numpy(rows.numpy().argmax(axis=-1))
        return rows.gather(1, ids[:, None])[:, 0], ids
    best, ids = rows.max(dim=-1)
    return best, ids


def block_sums(rows: Tensor) -> Tensor:
    """`[n, n_blocks(v)]`: the sum of each block of each row `[n, v]`, contiguous."""
    whole = rows.shape[1] // BLOCK * BLOCK
    sums = rows[:, :whole].view(len(rows), -1, BLOCK).sum(-1)
    if whole == rows.shape[1]:
        return sums
    return torch.cat([sums, rows[:, whole:].sum(-1, keepdim=True)], dim=1)


def n_blocks(columns: int) -> int:
    """Blocks of a row of `columns` values; the last may be short."""
    return -(-columns // BLOCK)


def block_maxima(rows: Tensor) -> Tensor:
    """`[n, n_blocks(v)]`: the maximum of each block of each row `[n, v]`."""
    whole = rows.shape[1] // BLOCK * BLOCK
    # A view: a row's whole blocks lie one after the other, whatever its stride.
    maxima = rows[:, :whole].view(len(rows), -1, BLOCK).amax(-1)
    if whole == rows.shape[1]:
        return maxima
    return torch.cat([maxima, rows[:, whole:].amax(-1, keepdim=True)], dim=1)


def threshold(maxima: Tensor, n: int) -> Tensor:
    """`[rows]`: a value that at least `n` values of the row reach; -inf (all do) if unknown."""
    if n > maxima.shape[1]:
        return maxima.new_full((len(maxima),), -torch.inf)
    return torch.topk(maxima, n).values[:, -1]


def at_least(rows: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The values of each row that reach its threshold.

    Args:
        rows: `[n, v]` without NaN.
        thresholds: `[n]`.

    Returns:
        Values and their positions, both `[n, most]`, in order of position and padded with -inf and
        `v`; and how many each row has, `[n]`.
    """
    n, columns = rows.shape
    flat = torch.cat([
        part.start * columns + positions_of((rows[part] >= thresholds[part, None]).view(-1))
        for part in in_cache(rows)
    ])  # fmt: skip
    row, column = flat // columns, flat % columns
    counts = torch.bincount(row, minlength=n)
    place = torch.arange(len(flat), device=rows.device) - (counts.cumsum(0) - counts)[row]
    width = int(counts.max())
    values = rows.new_full((n, width), -torch.inf)
    positions = torch.full((n, width), columns, device=rows.device)
    values[row, place] = rows[row, column]
    positions[row, place] = column
    return values, positions, counts


def positions_of(mask: Tensor) -> Tensor:
    """Where bool `mask` `[n]` is set, rising."""
    if mask.device.type == "cpu":
        return torch.from_numpy(mask.numpy().nonzero()[0])
    return mask.nonzero()[:, 0]


def largest(rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The `n` largest values of each row `[rows, v]` and their ids, best first; n ≤ v."""
    values, ids, _ = at_least(rows, threshold(block_maxima(rows), n))
    values, order = torch.sort(values, dim=-1, descending=True, stable=True)
    return values[:, :n], ids.gather(1, order)[:, :n]


def pad_columns(rows: Tensor, columns: int, value: float) -> Tensor:
    """`rows` `[n, v]` with columns of `value` appended, up to `columns`."""
    return F.pad(rows, (0, columns - rows.shape[1]), value=value)
