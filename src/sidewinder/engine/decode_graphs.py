"""Decode steps as CUDA graphs: one per batch bucket, replayed without Python between its kernels.

A step of one token per sequence has the same kernels each time; only token ids, slots and the like
change. They lie in buffers that stay, which a step fills with one copy; a batch is padded up to its
bucket with rows that run in a spare slot, whose state nobody reads. Where no row needs more than a
temperature and filters, drawing is part of the graph. The tokens stay on the device for the next
step, which may be started before anybody has seen them, and come back in one copy beside it.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from sidewinder.engine.buckets import INTEGERS, Bucket, Started
from sidewinder.engine.counted import CallCounter
from sidewinder.engine.plan import PENDING, SequenceStep
from sidewinder.engine.recorders import Recorder, Spare, record_step
from sidewinder.models.base import Model
from sidewinder.sampling.captured import DrawInputs, best_tokens, draw_tokens, split_bits
from sidewinder.sampling.sampler import Draw, Sampler
from sidewinder.sampling.vocab_shard import VocabShard
from sidewinder.state.batch import PackedBatch
from sidewinder.state.pool import StatePool

LARGEST_BUCKET = 256
"""Larger batches run without a graph: their kernels take longer than their launches."""

FEWEST_PAGES = 16
"""Smallest bucket of KV pages per sequence; buckets double."""

Way = Literal["later", "greedy", "random"]
"""How much of drawing is in a graph: none of it, only the most likely token, or all of it."""


def bucket_of(n: int) -> int:
    """The smallest bucket that holds `n` sequences: 1, 2, 4, then multiples of 8, then of 16."""
    assert 1 <= n <= LARGEST_BUCKET
    if n <= 4:
        return 1 << (n - 1).bit_length()
    step = 8 if n <= 64 else 16
    return -(-n // step) * step


class DecodeGraphs:
    """Runs decode steps of one rank; every rank makes the same calls.

    Args:
        model, pool: this rank's; the pool has the spare slot and page.
        recorder: makes graphs.
        spare: for padding.
        counter: of the model's collectives; goes on counting in replays.
    """

    def __init__(
        self, model: Model, pool: StatePool, recorder: Recorder, spare: Spare, counter: CallCounter
    ) -> None:
        self._model, self._pool, self._recorder = model, pool, recorder
        self._spare, self._counter = spare, counter
        self._device = pool.conv.device
        self._shard = VocabShard(model.dims.vocab_sizes, model.collectives)
        self._buckets: dict[tuple[int, int, Way], Bucket] = {}
        # The token drawn last in each slot, for steps that are started before it is known.
        self._last = torch.zeros(pool.conv.shape[1], dtype=torch.int64, device=self._device)

    def serves(self, sequences: Sequence[SequenceStep]) -> bool:
        """Whether a step is one that graphs can run: it only decodes."""
        return 0 < len(sequences) <= LARGEST_BUCKET and all(
            part.sample and len(part.tokens) == 1 and not part.score and not part.return_logits
            for part in sequences
        )

    def draw(self, sequences: Sequence[SequenceStep], sampler: Sampler) -> tuple[Tensor, list[int]]:
        """`start`, waited for: its logits, and the tokens drawn.

        Raises:
            RuntimeError: if logits hold NaN or infinity, or a graph cannot be recorded.
        """
        started = self.start(sequences, sampler)
        return started.logits, self.finish(started, sequences, sampler)

    def start(self, sequences: Sequence[SequenceStep], sampler: Sampler) -> Started:
        """Begin a step that `serves`; it may name `PENDING` tokens of the step before.

        Raises:
            RuntimeError: if a graph cannot be recorded.
        """
        slots = [part.slot for part in sequences]
        draws = sampler.unadjusted(slots, [part.allowed for part in sequences])
        bucket = self._run(sequences, draws)
        drawing = None
        if draws is not None:
            sampler.advance(slots)
            drawing = bucket.send_back()
        return Started(bucket.logits[: len(slots)], drawing, len(slots), bucket.recorded.calls)

    def finish(
        self, started: Started, sequences: Sequence[SequenceStep], sampler: Sampler
    ) -> list[int]:
        """The tokens of a step that was started.

        Raises:
            RuntimeError: if logits hold NaN or infinity.
        """
        if started.drawing is not None:
            return started.drawing.tokens(started.n)
        slots = [part.slot for part in sequences]
        return sampler.sample(started.logits, slots, [part.allowed for part in sequences])

    def _run(self, sequences: Sequence[SequenceStep], draws: list[Draw] | None) -> Bucket:
        way: Way = "later"
        if draws is not None:
            way = "greedy" if all(draw.params.greedy for draw in draws) else "random"
        size, n_pages = bucket_of(len(sequences)), self._pages_of(sequences)
        bucket = self._buckets.get((size, n_pages, way))
        if bucket is None:
            bucket = self._record(size, n_pages, way)
            self._buckets[size, n_pages, way] = bucket
        bucket.fill(*self._rows(sequences, draws, size, n_pages))
        bucket.recorded.repeat()
        self._counter.calls += bucket.recorded.calls
        return bucket

    def _pages_of(self, sequences: Sequence[SequenceStep]) -> int:
        """Bucket of pages per sequence that the step reads; 0 for pure SSMs."""
        if self._pool.kv is None:
            return 0
        needed = max(part.start for part in sequences) // self._pool.kv.page_size + 1
        return max(FEWEST_PAGES, 1 << (needed - 1).bit_length())

    def _rows(
        self,
        sequences: Sequence[SequenceStep],
        draws: list[Draw] | None,
        size: int,
        n_pages: int,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """What the buffers get: a row of every sequence, then padding."""
        spare = [0, self._spare.slot, 0, 0, 0, 0, *[self._spare.page] * n_pages]
        integers, numbers = [], []
        for index, part in enumerate(sequences):
            row = [part.tokens[0], part.slot, part.start, 0, 0, 0]
            number = [1.0, 0.0, 1.0]
            if draws is not None and not draws[index].params.greedy:
                top_k, number = draws[index].limits(self._model.config.vocab_size)
                row[3:] = [top_k, *split_bits(draws[index].bits)]
            pages = list(part.pages[:n_pages])
            integers.append([*row, *pages, *[self._spare.page] * (n_pages - len(pages))])
            numbers.append(number)
        n_padding = size - len(sequences)
        return integers + [spare] * n_padding, numbers + [[1.0, 0.0, 1.0]] * n_padding

    def _record(self, size: int, n_pages: int, way: Way) -> Bucket:
        bucket = Bucket.of(size, n_pages, self._device)
        # While it warms up and records, all rows are padding: no sequence's state changes.
        bucket.fill(*self._rows([], None, size, n_pages))
        batch, inputs = bucket.batch(), self._inputs(bucket)

        def run() -> None:
            self._refresh(batch, bucket)
            bucket.logits = self._model.local_logits(self._model.forward(batch, self._pool))
            if way == "greedy":
                bucket.tokens = best_tokens(bucket.logits, self._shard)
            elif way == "random":
                bucket.tokens = draw_tokens(bucket.logits, self._shard, inputs())
            if way != "later":
                self._last.index_copy_(0, batch.seqs.slots, bucket.tokens)

        name = f"a decode step of {size} sequences"
        bucket.recorded = record_step(self._recorder, self._counter, run, name)
        return bucket

    def _refresh(self, batch: PackedBatch, bucket: Bucket) -> None:
        """From the buffers' columns to contiguous tensors: the first kernels of a graph."""
        given = bucket.integers[:, 0]
        batch.seqs.slots.copy_(bucket.integers[:, 1])
        # A row that was not finite drew -1, which is no token to look up.
        drawn = self._last[batch.seqs.slots].clamp_(min=0)
        batch.token_ids.copy_(torch.where(given == PENDING, drawn, given))
        batch.seqs.fresh.copy_(bucket.integers[:, 2] == 0)

    def _inputs(self, bucket: Bucket) -> Callable[[], DrawInputs]:
        def inputs() -> DrawInputs:
            temperature, min_p, top_p = bucket.numbers.unbind(1)
            top_k, high_bits, low_bits = bucket.integers[:, 3 : len(INTEGERS)].unbind(1)
            return DrawInputs(temperature.float(), min_p.float(), top_p, top_k, high_bits, low_bits)

        return inputs
