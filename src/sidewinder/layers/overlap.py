"""Sums over ranks that travel while this rank computes something else.

- x_proj's sum, while the z half of `in_proj` is computed, which is needed only at the gate;
- a layer's delta of one half of a prefill chunk, while the other half is computed. The halves are
  rows of the batch; a sequence that is cut hands its state over in its slot.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace

import torch

from sidewinder.collectives.base import Collectives
from sidewinder.state.batch import Sequences

LEAST_ROWS = 64
"""Rows of a half: fewer use the matrix units badly."""
SEAM_ROWS = 64
"""A sequence is cut after a multiple of so many rows, where most chunked scans have seams too."""


@dataclass(frozen=True)
class Overlap:
    """What is hidden.

    Attributes:
        x_proj: x_proj's sum, behind the z half of `in_proj`.
        out_proj: the deltas' sums of one half of a prefill chunk, behind the other half.
    """

    x_proj: bool = False
    out_proj: bool = False


PLAIN = Overlap()


def nothing() -> None:
    """What a mixer does half way where nothing is to be done."""


OVERLAPS = {
    "none": PLAIN,
    "x_proj": Overlap(x_proj=True),
    "out_proj": Overlap(out_proj=True),
    "both": Overlap(x_proj=True, out_proj=True),
}
"""By what the option `overlap` names."""


def overlap_of(option: str, collectives: Collectives) -> Overlap:
    """What the option `overlap` asks for; `auto` hides both where messages travel by themselves.

    Over shared memory they do not: the ranks' own cores copy and add them (docs/parallel.md).
    """
    if option == "auto":
        option = "both" if collectives.overlaps else "none"
    return OVERLAPS[option]


def halves(seqs: Sequences) -> tuple[Sequences, Sequences] | None:
    """The rows of a batch in two parts of about the same size; None if it is too small.

    Decoding sequences stay together, in the first part. Sequences are not cut if a boundary is near
    the middle. Where only the device knows the boundaries, it is cut in the middle.
    """
    if seqs.n_tokens - seqs.n_decodes < LEAST_ROWS or seqs.n_tokens < 2 * LEAST_ROWS:
        return None
    middle = max(seqs.n_tokens // 2, seqs.n_decodes)
    if seqs.fixed_shape:
        return _split_on_device(seqs, middle) if middle > seqs.n_decodes else None
    near = min(seqs.bounds, key=lambda bound: abs(bound - middle))
    row = near if abs(near - middle) <= seqs.n_tokens // 16 else _seam(seqs, middle)
    if min(row, seqs.n_tokens - row) < LEAST_ROWS or row < seqs.n_decodes:
        return None
    return split(seqs, row)


def _seam(seqs: Sequences, middle: int) -> int:
    """The row at or before `middle` where its sequence may be cut."""
    start = seqs.bounds[bisect_right(seqs.bounds, middle) - 1]
    return start + (middle - start) // SEAM_ROWS * SEAM_ROWS


def split(seqs: Sequences, row: int) -> tuple[Sequences, Sequences]:
    """The rows before `row`, and those from it on.

    Args:
        seqs: whose `n_decodes` is at most `row`.
        row: neither the first nor beyond the last.
    """
    bounds = seqs.bounds
    n_first, skipped = bisect_left(bounds, row), bisect_right(bounds, row) - 1
    fresh, sources = seqs.fresh[skipped:].clone(), seqs.sources[skipped:].clone()
    if bounds[skipped] != row:  # The rest of a sequence goes on from what its first rows left.
        fresh[0], sources[0] = False, seqs.slots[skipped]
    starts = seqs.fresh[:n_first], seqs.sources[:n_first]
    first = _part(seqs, slice(0, n_first), [*bounds[:n_first], row], *starts)
    rest = [0, *(bound - row for bound in bounds[skipped + 1 :])]
    return first, _part(seqs, slice(skipped, None), rest, fresh, sources)


def _part(
    seqs: Sequences, which: slice, bounds: list[int], fresh: torch.Tensor, sources: torch.Tensor
) -> Sequences:
    return Sequences(
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32, device=seqs.cu_seqlens.device),
        slots=seqs.slots[which],
        sources=sources,
        fresh=fresh,
        bounds=tuple(bounds),
        n_decodes=seqs.n_decodes if which.start == 0 else 0,
        waves=seqs.waves if which.start == 0 else (),
        chains=seqs.chains if which.start == 0 else None,
    )


def _split_on_device(seqs: Sequences, row: int) -> tuple[Sequences, Sequences]:
    """`split` where lengths change from run to run: prompts have all their rows in the first part,
    in the second, or some in both. A part without rows of a prompt leaves its slot as it is, or
    clears it for the other."""
    bounds, n, n_prompts = seqs.cu_seqlens, seqs.n_decodes, seqs.n_seqs - seqs.n_decodes
    later = bounds[n:]
    first = replace(
        seqs,
        cu_seqlens=bounds.clamp(max=row),
        bounds=(*range(n + 1), *[row] * n_prompts),
    )
    second = Sequences(
        cu_seqlens=(later - row).clamp_(min=0),
        slots=seqs.slots[n:],
        sources=seqs.slots[n:],
        fresh=seqs.fresh[n:] & (later[:-1] >= row),
        bounds=(0, *[seqs.n_tokens - row] * n_prompts),
        n_decodes=0,
        fixed_shape=True,
    )
    return first, second
