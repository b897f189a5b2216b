"""Steps with prompts as CUDA graphs: one per shape, replayed without Python between kernels.

A GPU runs some thousand tokens in less time than Python takes to launch their kernels, and the more
ranks share a model, the more tokens. Prompts of any lengths share a graph: their tokens lie end to
end, and where each begins is read by the kernels from a buffer. A step is filled up to its shape
with single tokens and an end of the buffer that belong to sequences in a spare slot, whose state
nobody reads. A hybrid's page tables are read from the buffer, too; room for pages doubles.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from sidewinder.engine.counted import CallCounter
from sidewinder.engine.plan import SequenceStep
from sidewinder.engine.prompt_shapes import StepShape, count_singles, most_rows
from sidewinder.engine.recorders import NOT_RECORDED, Recorded, Recorder, Spare, StepRecorder
from sidewinder.models.base import Model
from sidewinder.ops.dispatch import runs_triton
from sidewinder.ops.prompt_attention import reads_lengths, was_timed
from sidewinder.state.batch import PackedBatch, PageTables, Sequences
from sidewinder.state.pool import StatePool

MOST_GRAPHS = 64
"""That are kept at once; the one that was not used for the longest time makes room."""
PLAIN_RUNS = 2
"""Times that a shape runs plainly before it is recorded, which takes as long as five steps."""
PLAIN_RUNS_AGAIN = 32
"""The same once its graph has made room: shapes that take turns would be recorded for more than
their replays save."""


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
        self._sizes = [shape.tokens, n, n, n + 1, n * shape.pages]
        self._integers = torch.zeros(sum(self._sizes), dtype=torch.int64, device=device)
        slots = torch.empty(n, dtype=torch.int64, device=device)
        seqs = Sequences(
            cu_seqlens=torch.empty(n + 1, dtype=torch.int32, device=device),
            slots=slots,
            sources=slots,
            fresh=torch.empty(n, dtype=torch.bool, device=device),
            bounds=shape.longest_bounds,
            n_decodes=shape.singles,
            fixed_shape=True,
        )
        token_ids = torch.empty(shape.tokens, dtype=torch.int64, device=device)
        tables = None
        if shape.pages:
            _, _, starts, _, pages = torch.split(self._integers, self._sizes)
            tables = PageTables(pages.view(n, shape.pages), starts)
        self.batch = PackedBatch(token_ids, seqs, starts=(), device_tables=tables)
        self.ends = torch.empty(n, dtype=torch.int64, device=device)

    def fill(self, integers: list[int]) -> None:
        """Send a step's tokens, slots, starts, boundaries and pages, one after the other."""
        self._integers.copy_(torch.tensor(integers, dtype=torch.int64))

    def spread(self) -> None:
        """From the one buffer to the tensors that operators take: the first kernels of a graph."""
        tokens, slots, starts, bounds, _ = torch.split(self._integers, self._sizes)
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
        model, pool: this rank's; the pool has the spare slot, and a hybrid's the spare page.
        recorder: makes graphs.
        spare: for padding.
        counter: of the model's collectives; goes on counting in replays.
    """

    def __init__(
        self, model: Model, pool: StatePool, recorder: Recorder, spare: Spare, counter: CallCounter
    ) -> None:
        self._model, self._pool = model, pool
        self._spare, self._counter = spare, counter
        n_ranks = model.collectives.tp.size
        self._recorder = StepRecorder(recorder, counter, n_ranks, "steps with prompts of shapes")
        self._page_size = pool.kv.page_size if pool.kv is not None else 0
        self._most_rows = most_rows(model.config, model.collectives.tp.size)
        self._seen = Counter[StepShape]()
        self._graphs: dict[StepShape, _Graph] = {}

    def last_rows(self, sequences: Sequence[SequenceStep]) -> Tensor | None:
        """Run a step: `[sequences, d_model]`, each one's last row after the final norm. None, and
        nothing is run, if it is to be run plainly.

        Raises:
            RuntimeError: if a graph cannot be recorded; on one rank, not for want of memory.
        """
        if any(part.score or part.return_logits or part.drafts for part in sequences):
            return None
        shape = StepShape.of(sequences, self._most_rows, self._page_size)
        if shape is None:
            return None
        self._seen[shape] += 1
        if self._seen[shape] <= PLAIN_RUNS:
            return None
        graph = self._graphs.pop(shape, None) or self._record(shape)
        if graph is None:
            return None
        self._graphs[shape] = graph  # As the newest.
        graph.inputs.fill(self._integers(shape, sequences))
        graph.recorded.repeat()
        self._counter.calls += graph.recorded.calls
        n_singles = count_singles(sequences)
        n_prompts = len(sequences) - n_singles
        singles, prompts = torch.split(graph.hidden, [shape.singles, shape.prompts])
        return torch.cat([singles[:n_singles], prompts[:n_prompts]])

    def _record(self, shape: StepShape) -> _Graph | None:
        """None if there is no memory for it, or was none for another."""
        if not self._recorder.has_room:
            return None
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

        recorded = self._recorder.record(run, f"a step of {shape.tokens} tokens with prompts")
        if recorded is None:
            return None
        graph.recorded = recorded
        return graph

    def _integers(self, shape: StepShape, sequences: Sequence[SequenceStep]) -> list[int]:
        """What `StepInputs.fill` takes: the sequences, filled up."""
        n_singles = count_singles(sequences)
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
            *(page for part in parts for page in self._pages(part, shape.pages)),
        ]

    def _pages(self, part: SequenceStep, room: int) -> list[int]:
        pages = list(part.pages[:room])
        return pages + [self._spare.page] * (room - len(pages))


def prompt_graphs_for(
    model: Model, pool: StatePool, recorder: Recorder, spare: Spare, counter: CallCounter
) -> PromptGraphs | None:
    """Graphs of short prompts where the operators allow them: those that are not Triton's need
    lengths on the host, and so does a hybrid's attention in float32, or where its kernels have not
    been timed."""
    if not runs_triton(pool.conv.device):
        return None
    if pool.kv is not None and not (reads_lengths(pool.kv.k.dtype) and was_timed()):
        return None
    return PromptGraphs(model, pool, recorder, spare, counter)
