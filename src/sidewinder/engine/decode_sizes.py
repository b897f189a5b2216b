"""Sizes of decode steps that graphs have room for."""

from collections.abc import Sequence
from dataclasses import dataclass

from sidewinder.engine.drafts import MOST_ROWS
from sidewinder.engine.plan import SequenceStep
from sidewinder.ops.launching import power_of_two

LARGEST_BUCKET = 256
"""Larger batches run without a graph: their kernels take longer than their launches."""

FEWEST_PAGES = 16
"""Smallest bucket of KV pages per sequence; buckets double."""

ROWS_WITH_DRAFTS = (2, 3, 5, 9, MOST_ROWS)
"""Rows of steps with drafts: of one text, its own token with 1, 2, 4, 8 and 15 drafts."""


def bucket_of(n: int) -> int:
    """The smallest bucket that holds `n` sequences: 1, 2, 4, then multiples of 8, then of 16."""
    assert 1 <= n <= LARGEST_BUCKET
    if n <= 4:
        return 1 << (n - 1).bit_length()
    step = 8 if n <= 64 else 16
    return -(-n // step) * step


@dataclass(frozen=True)
class StepSize:
    """What the steps of one graph have room for.

    Attributes:
        rows: tokens.
        chains: sequences, where some of the tokens are drafts: each has its rows side by side.
            Without drafts 0, and every row is a sequence.
        pages: hybrids, KV pages that each row reads; else 0.
    """

    rows: int
    chains: int = 0
    pages: int = 0

    @staticmethod
    def of(parts: Sequence[SequenceStep], page_size: int = 0) -> "StepSize":
        """The smallest that holds a step that only decodes. A `page_size` is a hybrid's."""
        pages, n_rows = 0, sum(part.n_rows for part in parts)
        if page_size:
            last = max(part.start + len(part.drafts) for part in parts)
            pages = power_of_two(last // page_size + 1, least=FEWEST_PAGES)
        if n_rows == len(parts):
            return StepSize(bucket_of(n_rows), 0, pages)
        rows = min(size for size in ROWS_WITH_DRAFTS if size >= n_rows)
        return StepSize(rows, bucket_of(len(parts)), pages)


def sizes_with_drafts(batch: int, speculate: int) -> list[StepSize]:
    """Of so many sequences at most, each with at most so many drafts; but for pages."""
    sizes = dict[StepSize, None]()
    for n_seqs in range(1, min(batch, MOST_ROWS - 1) + 1 if speculate else 1):
        for n_drafts in range(1, min(MOST_ROWS - n_seqs, n_seqs * speculate) + 1):
            rows = min(size for size in ROWS_WITH_DRAFTS if size >= n_seqs + n_drafts)
            sizes[StepSize(rows, bucket_of(n_seqs))] = None
    return list(sizes)
