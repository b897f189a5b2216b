"""Steps with prompts as CUDA graphs: one per shape, replayed without Python between kernels.

A GPU runs some thousand tokens in less time than Python takes to launch their kernels, and the more
ranks share a model, the more tokens. Prompts of any lengths share a graph: their tokens lie end to
end, and where each begins is read by the kernels from a buffer. A step is filled up to its shape
with single tokens and an end of the buffer that belong to sequences in a spare slot, whose state
nobody reads.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise, product
from math import prod

import torch
from torch import Tensor

from sidewinder.config import ModelConfig
from sidewinder.engine.counted import CallCounter
from sidewinder.engine.plan import SequenceStep
from sidewinder.engine.recorders import (
    NOT_RECORDED,
    Recorded,
    Recorder,
    Spare,
    record_step,
)
from sidewinder.models.base import Model
from sidewinder.ops.dispatch import runs_triton
from sidewinder.ops.launching import power_of_two
from sidewinder.sharding.plan import parameter_shapes
from sidewinder.state.batch import PackedBatch, Sequences
from sidewinder.state.pool import StatePool

SINGLES = (0, 4, 16, 64, 128, 256)
"""Sequences of one token in a step, most of them decoding."""
PROMPTS = (2, 8, 32)
"""Other sequences, with at least one that is padding. It may be empty."""
FEWEST_ROWS, ROW_SIZES = 64, 16
"""Rows of a step are multiples of the first, and one of so many parts of the next power of two."""
ROWS_TIMES_PARAMETERS = 1e11
"""Rows of the largest step, times the parameters of a rank's part of a layer. For more an H100 is
busy for longer than Python with the layer's launches (0.4 ms), and only padding is left."""
MOST_GRAPHS = 64
"""That are kept at once; the one that was not used for the longest time makes room."""
PLAIN_RUNS = 2
"""Times that a shape runs plainly before it is recorded, which takes as long as five steps."""
PLAIN_RUNS_AGAIN = 32
"""The same once its graph has made room: shapes that take turns would be recorded for more than
their replays save."""


@dataclass(frozen=True)
class StepShape:
    """Sizes that steps of one graph share.

    Attributes:
        singles: leading sequences of one token.
        prompts: sequences behind them.
        tokens: rows in all.
    """

    singles: int
    prompts: int
    tokens: int

    @staticmethod
    def of(sequences: Sequence[SequenceStep], most_rows: int) -> "StepShape | None":
        """The smallest that holds a step; None if there is none of at most so many rows, or no
        prompt in the step."""
        n_singles = _count_singles(sequences)
        prompts = sequences[n_singles:]
        tokens = sum(len(part.tokens) for part in prompts)
        return StepShape.holding(n_singles, len(prompts), tokens, most_rows)

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
    in_layers = sum(prod(shapes[name]) for name in shapes if name.startswith("layers."))
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


class StepInputs:
    """What steps of one shape are given, where their graph finds it.

    Args:
        shape: of the steps.
        device: where the model is.

    Attributes:
        batch: what the model runs.
        ends: int64 `[sequences]`, the last row of each; of an empty one, any.
    """

    def __init__(self, shape: StepShape, device: torch.device) -> None:
        n = shape.sequences
        self._sizes = [shape.tokens, n, n, n + 1]
        self._integers = torch.zeros(sum(self._sizes), dtype=torch.int64, device=device)
        seqs = Sequences(
            cu_seqlens=torch.empty(n + 1, dtype=torch.int32, device=device),
            slots=torch.empty(n, dtype=torch.int64, device=device),
            fresh=torch.empty(n, dtype=torch.bool, device=device),
            bounds=shape.longest_bounds,
            n_decodes=shape.singles,
            fixed_shape=True,
        )
        token_ids = torch.empty(shape.tokens, dtype=torch.int64, device=device)
        self.batch = PackedBatch(token_ids, seqs, starts=())
        self.ends = torch.empty(n, dtype=torch.int64, device=device)

    def fill(self, integers: list[int]) -> None:
        """Send a step's tokens, slots, starts and boundaries, one after the other."""
        self._integers.copy_(torch.tensor(integers, dtype=torch.int64))

    def spread(self) -> None:
        """From the one buffer to the tensors that operators take: the first kernels of a graph."""
        tokens, slots, starts, bounds = torch.split(self._integers, self._sizes)
        self.batch.token_ids.copy_(tokens)
        self.batch.seqs.slots.copy_(slots)
        self.batch.seqs.fresh.copy_(starts == 0)
        self.batch.seqs.cu_seqlens.copy_(bounds)
        self.ends.copy_((bounds[1:] - 1).clamp_(min=0))


@dataclass
class _Graph:
    """A shape's inputs, what runs it, and the last run's `[sequences, d_model]` of last rows."""

    inputs: StepInputs
    recorded: Recorded = NOT_RECORDED
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))


class PromptGraphs:
    """Runs steps with prompts of one rank; every rank makes the same calls.

    Args:
        model, pool: this rank's, without attention; the pool has the spare slot.
        recorder: makes graphs.
        spare: for padding.
        counter: of the model's collectives; goes on counting in replays.
    """

    def __init__(
        self, model: Model, pool: StatePool, recorder: Recorder, spare: Spare, counter: CallCounter
    ) -> None:
        assert pool.kv is None, "attention over prompts has no fixed shape"
        self._model, self._pool, self._recorder = model, pool, recorder
        self._spare, self._counter = spare, counter
        self._most_rows = most_rows(model.config, model.collectives.tp.size)
        self._seen = Counter[StepShape]()
        self._graphs: dict[StepShape, _Graph] = {}

    def last_rows(self, sequences: Sequence[SequenceStep]) -> Tensor | None:
        """Run a step: `[sequences, d_model]`, each one's last row after the final norm. None, and
        nothing is run, if it is to be run plainly.

        Raises:
            RuntimeError: if a graph cannot be recorded.
        """
        if any(part.score or part.return_logits for part in sequences):
            return None
        shape = StepShape.of(sequences, self._most_rows)
        if shape is None:
            return None
        self._seen[shape] += 1
        if self._seen[shape] <= PLAIN_RUNS:
            return None
        graph = self._graphs.pop(shape) if shape in self._graphs else self._record(shape)
        self._graphs[shape] = graph  # As the newest.
        graph.inputs.fill(self._integers(shape, sequences))
        graph.recorded.repeat()
        self._counter.calls += graph.recorded.calls
        n_singles = _count_singles(sequences)
        n_prompts = len(sequences) - n_singles
        singles, prompts = torch.split(graph.hidden, [shape.singles, shape.prompts])
        return torch.cat([singles[:n_singles], prompts[:n_prompts]])

    def _record(self, shape: StepShape) -> _Graph:
        if len(self._graphs) == MOST_GRAPHS:
            oldest = next(iter(self._graphs))
            del self._graphs[oldest]
            self._seen[oldest] = PLAIN_RUNS - PLAIN_RUNS_AGAIN
        inputs = StepInputs(shape, self._pool.conv.device)
        # While it warms up and records, all rows are padding: no sequence's state changes.
        inputs.fill(self._integers(shape, []))
        graph = _Graph(inputs)

        def run() -> None:
            inputs.spread()
            hidden = self._model.forward(inputs.batch, self._pool)
            graph.hidden = hidden.index_select(0, inputs.ends)

        name = f"a step of {shape.tokens} tokens with prompts"
        graph.recorded = record_step(self._recorder, self._counter, run, name)
        return graph

    def _integers(self, shape: StepShape, sequences: Sequence[SequenceStep]) -> list[int]:
        """What `StepInputs.fill` takes: the sequences, filled up."""
        n_singles = _count_singles(sequences)
        padding = SequenceStep(self._spare.slot, (0,), 0)
        empty = SequenceStep(self._spare.slot, (), 0)
        parts = [*sequences[:n_singles], *[padding] * (shape.singles - n_singles)]
        parts += sequences[n_singles:]
        parts += [empty] * (shape.sequences - 1 - len(parts))
        n_tokens = sum(len(part.tokens) for part in parts)
        parts.append(SequenceStep(self._spare.slot, (0,) * (shape.tokens - n_tokens), 0))
        return [
            *(token for part in parts for token in part.tokens),
            *(part.slot for part in parts),
            *(part.start for part in parts),
            *accumulate((len(part.tokens) for part in parts), initial=0),
        ]


def prompt_graphs_for(
    model: Model, pool: StatePool, recorder: Recorder, spare: Spare, counter: CallCounter
) -> PromptGraphs | None:
    """Graphs of short prompts where the model and its operators allow them: a hybrid's attention
    needs lengths on the host, and so do all operators that are not Triton's."""
    if pool.kv is not None or not runs_triton(pool.conv.device):
        return None
    return PromptGraphs(model, pool, recorder, spare, counter)


def _rows_for(n: int) -> int:
    """Rows of a step's shape for `n` that are used."""
    step = max(FEWEST_ROWS, power_of_two(n) // ROW_SIZES)
    return -(-n // step) * step


def _count_singles(sequences: Sequence[SequenceStep]) -> int:
    """Leading sequences of one token, as `state.batch.pack` counts them."""
    for index, part in enumerate(sequences):
        if len(part.tokens) != 1:
            return index
    return len(sequences)
