"""A step's plan as the rows that a model runs."""

from collections.abc import Sequence
from itertools import accumulate

import torch

from sidewinder.engine.plan import SequenceStep
from sidewinder.state.batch import PackedBatch, pack


def pack_step(
    parts: Sequence[SequenceStep], device: torch.device, paged: bool, chained: bool = False
) -> tuple[PackedBatch, list[list[int]]]:
    """One batch of all parts.

    A draft is a sequence of one token that goes on from the token before it. All first drafts come
    behind all single tokens, all second ones behind those: none goes on from its own wave. Or each
    lies behind the token that it goes on from.

    Args:
        parts: single ones first.
        device: where the model is.
        paged: whether it has KV pages.
        chained: drafts go into chains, not waves (`Sequences.chains`).

    Returns:
        The batch, and of each part its rows there.
    """
    singles = [index for index, part in enumerate(parts) if part.is_single]
    assert singles == list(range(len(singles))), "single tokens come first"
    n_rows = [parts[index].n_rows for index in singles]
    order = [(depth, index) for index in singles for depth in range(n_rows[index])]
    if not chained:
        order.sort()
    drafts = max(n_rows, default=1) > 1
    runs = [_run(parts[index], depth) for depth, index in order]
    owners = [index for _, index in order]
    for index in range(len(singles), len(parts)):
        runs.append((list(parts[index].tokens), parts[index].slot, parts[index].slot, 0))
        owners.append(index)
    tokens, slots, sources, depths = map(list, zip(*runs, strict=True))
    batch = pack(
        tokens,
        slots,
        [parts[index].start + depth for index, depth in zip(owners, depths, strict=True)],
        [list(parts[index].pages) for index in owners] if paged else None,
        device,
        sources,
        waves=_wave_ends(n_rows) if drafts and not chained else (),
        chains=tuple(accumulate(n_rows, initial=0)) if drafts and chained else (),
    )
    rows: list[list[int]] = [[] for _ in parts]
    for sequence, index in enumerate(owners):
        rows[index] += range(*batch.seqs.bounds[sequence : sequence + 2])
    return batch, rows


def _wave_ends(n_rows: Sequence[int]) -> tuple[int, ...]:
    """Where each wave but the last ends, of sequences with so many rows."""
    sizes = [sum(n > depth for n in n_rows) for depth in range(max(n_rows))]
    return tuple(accumulate(sizes[:-1]))


def _run(part: SequenceStep, depth: int) -> tuple[list[int], int, int, int]:
    """Token, slot, source and depth of a single part's token, or of one of its drafts."""
    return [part.tokens[depth]], part.slots[depth], part.slots[max(0, depth - 1)], depth


def drawing_slots(parts: Sequence[SequenceStep]) -> list[int]:
    """Of each part its slot, once for every token that is drawn for it."""
    return [part.slot for part in parts for _ in range(part.n_rows)]


def n_accepted(drafts: Sequence[int], drawn: Sequence[int]) -> int:
    """How many drafts are accepted: up to the first that is not what was drawn.

    Args:
        drafts: of a sequence's next tokens.
        drawn: behind the token before the first draft, and behind each draft.
    """
    for n_good, (draft, token) in enumerate(zip(drafts, drawn, strict=False)):
        if draft != token:
            return n_good
    return len(drafts)


def kept_rows(parts: Sequence[SequenceStep], tokens: Sequence[int]) -> list[range]:
    """Of each part the rows that count: up to the one behind its last draft that is accepted.

    Args:
        parts: those that draw.
        tokens: drawn, one for each of their slots, part after part.
    """
    kept, first = [], 0
    for part in parts:
        drawn = tokens[first : first + len(part.slots)]
        kept.append(range(first, first + 1 + n_accepted(part.drafts, drawn)))
        first += len(part.slots)
    return kept
