"""Shapes of steps with prompts: the sizes that steps of one graph share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import prod

from sidewinder.config import ModelConfig
from sidewinder.engine.decode_sizes import FEWEST_PAGES
from sidewinder.engine.plan import SequenceStep
from sidewinder.ops.launching import power_of_two
from sidewinder.sharding.plan import parameter_shapes, passes

SINGLES = (0, 4, 16, 64, 128, 256)
"""Sequences of one token in a step, most of them decoding."""
PROMPTS = (2, 8, 32)
"""Other sequences, with at least one that is padding. It may be empty."""
FEWEST_ROWS, ROW_SIZES = 64, 16
"""Rows of a step are multiples of the first, and one of so many parts of the next power of two."""
ROWS_TIMES_PARAMETERS = 1e11
"""Rows of the largest step, times the parameters of a rank's part of a layer that a token passes,
of many experts a few. For more an H100 is busy for longer than Python with the layer's launches
(0.4 ms), and only padding is left."""

MOST_PAGES = 1024
"""Most room for KV pages: with more, attention's weights of one block of rows for all keys of the
room take more than 128 MiB of a hybrid with 32 heads."""


@dataclass(frozen=True)
class StepShape:
    """Sizes that steps of one graph share.

    Attributes:
        singles: leading sequences of one token.
        prompts: sequences behind them.
        tokens: rows in all.
        pages: hybrids, room for KV pages of each sequence; else 0.
    """

    singles: int
    prompts: int
    tokens: int
    pages: int = 0

    @staticmethod
    def of(
        sequences: Sequence[SequenceStep], most_rows: int, page_size: int = 0
    ) -> "StepShape | None":
        """The smallest that holds a step; None if there is none of at most so many rows, or no
        prompt in the step. A `page_size` is a hybrid's."""
        n_singles = count_singles(sequences)
        prompts = sequences[n_singles:]
        tokens = sum(len(part.tokens) for part in prompts)
        shape = StepShape.holding(n_singles, len(prompts), tokens, most_rows)
        if shape is None or not page_size:
            return shape
        longest = max(part.start + len(part.tokens) for part in sequences)
        pages = power_of_two(-(-longest // page_size), least=FEWEST_PAGES)
        return replace(shape, pages=pages) if pages <= MOST_PAGES else None

    @staticmethod
    def holding(
        n_singles: int, n_prompts: int, prompt_tokens: int, most_rows: int
    ) -> "StepShape | None":
        """The smallest for so many sequences of one token, and others with so many in all."""
        singles = next((size for size in SINGLES if size >= n_singles), None)
        prompts = next((size for size in PROMPTS if size > n_prompts), None)
        if not n_prompts or singles is None or prompts is None:
            return None
        tokens = _rows_for(singles + prompt_tokens)
        # The scan of several prompts is cut as if one had all rows, and may take twice as long so.
        fits = tokens <= (most_rows if prompts == PROMPTS[0] else most_rows // 2)
        return StepShape(singles, prompts, tokens) if fits else None

    @property
    def sequences(self) -> int:
        return self.singles + self.prompts

    @property
    def longest_bounds(self) -> tuple[int, ...]:
        """Boundaries of the sequences if the first prompt has all rows that prompts can have."""
        return (*range(self.singles + 1), *[self.tokens] * self.prompts)


def most_rows(config: ModelConfig, tp: int) -> int:
    """Rows of the largest step that is recorded, on every one of so many ranks."""
    shapes = parameter_shapes(config)
    in_layers = sum(
        prod(shapes[name]) * passes(config, name) for name in shapes if name.startswith("layers.")
    )
    return int(ROWS_TIMES_PARAMETERS * config.n_layers * tp / in_layers)


def shapes_for(batch: int, rows: int) -> Iterator[StepShape]:
    """The shapes that steps of at most so many sequences and rows can have."""
    sizes, fewest_prompts = sorted({_rows_for(n) for n in range(1, rows + 1)}), (1, *PROMPTS[:-1])
    for (less, singles), n_prompts in product(pairwise((-1, *SINGLES)), fewest_prompts):
        if less + 1 + n_prompts > batch:
            continue
        for tokens in sizes:
            # A prompt has two tokens at least.
            n_tokens = tokens - singles
            shape = StepShape.holding(singles, n_prompts, n_tokens, rows) if n_tokens > 1 else None
            if shape is not None:
                yield shape


def _rows_for(n: int) -> int:
    """Rows of a step's shape for `n` that are used."""
    step = max(FEWEST_ROWS, power_of_two(n) // ROW_SIZES)
    return -(-n // step) * step


def count_singles(sequences: Sequence[SequenceStep]) -> int:
    """Leading sequences of one token, as `state.batch.pack` counts them."""
    for index, part in enumerate(sequences):
        if len(part.tokens) != 1:
            return index
    return len(sequences)
