"""A step's plan as the rows that a model runs."""

from collections.abc import Sequence
from itertools import accumulate

import torch

from sidewinder.engine.plan import SequenceStep
from sidewinder.state.batch import PackedBatch, pack


def pack_step(
    parts: Sequence[SequenceStep], device: torch.device, paged: bool
) -> tuple[PackedBatch, list[list[int]]]:
    """One batch of all parts.

    A draft is a sequence of one token that goes on from the token before it. All first drafts come
    behind all single tokens, all second ones behind those: none goes on from its own wave.

    Args:
        parts: single ones first.
        device: where the model is.
        paged: whether it has KV pages.

    Returns:
        The batch, and of each part its rows there.
    """
    singles = [index for index, part in enumerate(parts) if part.is_single]
    assert singles == list(range(len(singles))), "single tokens come first"
    most = max((len(parts[index].slots) for index in singles), default=0)
    waves = [[i for i in singles if len(parts[i].slots) > depth] for depth in range(most)]
    runs = [_run(parts[index], depth) for depth, wave in enumerate(waves) for index in wave]
    owners = [index for wave in waves for index in wave]
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
        waves=tuple(accumulate(map(len, waves[:-1]))),
    )
    rows: list[list[int]] = [[] for _ in parts]
    for sequence, index in enumerate(owners):
        rows[index] += range(*batch.seqs.bounds[sequence : sequence + 2])
    return batch, rows


def _run(part: SequenceStep, depth: int) -> tuple[list[int], int, int, int]:
    """Token, slot, source and depth of a single part's token, or of one of its drafts."""
    return [part.tokens[depth]], part.slots[depth], part.slots[max(0, depth - 1)], depth


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
