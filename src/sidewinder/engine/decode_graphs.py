"""Decode steps as CUDA graphs: one per size, replayed without Python between its kernels.

A step of one token per sequence has the same kernels each time; only token ids, slots and the like
change. They lie in buffers that stay, which a step fills with one copy; a batch is padded up to its
bucket with rows that run in a spare slot, whose state nobody reads. Where no row needs more than a
temperature and filters, drawing is part of the graph. The tokens stay on the device for the next
step, which may be started before anybody has seen them, and come back in one copy beside it.

Drafts are rows, too, behind their sequence's own. Where each sequence's rows begin is read by the
kernels from the buffer, so that steps share a graph however many drafts each of them has; padding
goes on behind the last one's rows, into the spare slot.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

import torch

from sidewinder.engine.buckets import CHAIN_END, TOP_K, Bucket, Started
from sidewinder.engine.counted import CallCounter
from sidewinder.engine.decode_sizes import LARGEST_BUCKET, StepSize
from sidewinder.engine.drafts import MOST_ROWS
from sidewinder.engine.packing import drawing_slots
from sidewinder.engine.plan import PENDING, SequenceStep
from sidewinder.engine.recorders import Recorder, Spare, StepRecorder
from sidewinder.models.base import Model
from sidewinder.sampling.captured import DrawInputs, best_tokens, draw_tokens, split_bits
from sidewinder.sampling.finite import check_drawn
from sidewinder.sampling.sampler import Draw, Sampler
from sidewinder.sampling.vocab_shard import VocabShard
from sidewinder.state.batch import PackedBatch
from sidewinder.state.pool import StatePool

Way = Literal["later", "greedy", "random"]
"""How much of drawing is in a graph: none of it, only the most likely token, or all of it."""


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
        self._model, self._pool = model, pool
        self._spare, self._counter = spare, counter
        n_ranks = model.collectives.tp.size
        self._recorder = StepRecorder(recorder, counter, n_ranks, "decode steps of sizes")
        self._device = pool.conv.device
        self._shard = VocabShard(model.dims.vocab_sizes, model.collectives)
        self._page_size = 0 if pool.kv is None else pool.kv.page_size
        self._buckets: dict[tuple[StepSize, Way], Bucket] = {}
        # The token drawn last in each slot, for steps that are started before it is known.
        self._last = torch.zeros(pool.conv.shape[1], dtype=torch.int64, device=self._device)

    def serves(self, sequences: Sequence[SequenceStep]) -> bool:
        """Whether a step is one that graphs can run: it only decodes."""
        n_rows = sum(part.n_rows for part in sequences)
        most = LARGEST_BUCKET if n_rows == len(sequences) else MOST_ROWS
        return 0 < n_rows <= most and all(
            part.sample and part.is_single and not part.score and not part.return_logits
            for part in sequences
        )

    def start(self, sequences: Sequence[SequenceStep], sampler: Sampler) -> Started | None:
        """Begin a step that `serves`; it may name `PENDING` tokens of the step before. None, and
        nothing has begun, if there is no memory for its graph.

        Raises:
            RuntimeError: if a graph cannot be recorded; on one rank, not for want of memory.
        """
        slots = drawing_slots(sequences)
        draws = sampler.unadjusted(slots, [mask for part in sequences for mask in part.masks])
        bucket = self._run(sequences, draws)
        if bucket is None:
            return None
        drawing = None
        if draws is not None:
            sampler.advance(slots)
            drawing = bucket.send_back()
        return Started(bucket.logits[: len(slots)], drawing, len(slots), bucket.recorded.calls)

    def finish(
        self, started: Started, sequences: Sequence[SequenceStep], sampler: Sampler
    ) -> list[int]:
        """The tokens of a step that was started, as `Sampler.sample` gives them.

        Raises:
            NotFinite: if a row that is no draft holds NaN or infinity.
        """
        if started.drawing is None:
            allowed = [mask for part in sequences for mask in part.masks]
            return sampler.sample(started.logits, drawing_slots(sequences), allowed)
        tokens = started.drawing.tokens(started.n)
        firsts = list(accumulate((part.n_rows for part in sequences), initial=0))[:-1]
        check_drawn(tokens, firsts)
        return tokens

    def _run(self, sequences: Sequence[SequenceStep], draws: list[Draw] | None) -> Bucket | None:
        way: Way = "later"
        if draws is not None:
            way = "greedy" if all(draw.params.greedy for draw in draws) else "random"
        size = StepSize.of(sequences, self._page_size)
        bucket = self._buckets.get((size, way))
        if bucket is None:
            bucket = self._record(size, way)
            if bucket is None:
                return None
            self._buckets[size, way] = bucket
        at_random = draws if draws is not None and way == "random" else []
        bucket.fill(*self._rows(sequences, at_random, size))
        bucket.recorded.repeat()
        self._counter.calls += bucket.recorded.calls
        return bucket

    def _rows(
        self, sequences: Sequence[SequenceStep], draws: Sequence[Draw], size: StepSize
    ) -> tuple[list[list[int]], list[list[float]]]:
        """What the buffers get: a row of every token, then padding, the last chain's end. Where
        nothing is drawn at random there are no `draws`."""
        spare, integers = self._spare, list[list[int]]()
        for part in sequences:
            places = [*part.pages[: size.pages], *[spare.page] * (size.pages - len(part.pages))]
            for depth, slot in enumerate(part.slots):
                start = part.start + depth
                integers.append([part.tokens[depth], slot, start, 0, 0, 0, size.rows, *places])
        padding = [0, spare.slot, 0, 0, 0, 0, size.rows, *[spare.page] * size.pages]
        integers += [padding] * (size.rows - len(integers))
        numbers = [[1.0, 0.0, 1.0]] * size.rows
        for index, draw in enumerate(draws):
            if not draw.params.greedy:
                top_k, numbers[index] = draw.limits(self._model.config.vocab_size)
                integers[index][TOP_K:CHAIN_END] = top_k, *split_bits(draw.bits)
        if size.chains:
            for chain, end in enumerate(accumulate(part.n_rows for part in sequences[:-1])):
                integers[chain][CHAIN_END] = end
        return integers, numbers

    def _record(self, size: StepSize, way: Way) -> Bucket | None:
        """None if there is no memory for it, or was none for another."""
        if not self._recorder.has_room:
            return None
        bucket = Bucket.of(size, self._device)
        # While it warms up and records, all rows are padding: no sequence's state changes.
        bucket.fill(*self._rows([], [], size))
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

        recorded = self._recorder.record(run, f"a decode step of {size.rows} tokens")
        if recorded is None:
            return None
        bucket.recorded = recorded
        return bucket

    def _refresh(self, batch: PackedBatch, bucket: Bucket) -> None:
        """From the buffers' columns to contiguous tensors: the first kernels of a graph."""
        given = bucket.integers[:, 0]
        batch.seqs.slots.copy_(bucket.integers[:, 1])
        # A row that was not finite drew -1, which is no token to look up.
        drawn = self._last[batch.seqs.slots].clamp_(min=0)
        batch.token_ids.copy_(torch.where(given == PENDING, drawn, given))
        batch.seqs.fresh.copy_(bucket.integers[:, 2] == 0)
        if batch.seqs.chains is not None:
            batch.seqs.chains[1:].copy_(bucket.integers[: bucket.size.chains, CHAIN_END])

    def _inputs(self, bucket: Bucket) -> Callable[[], DrawInputs]:
        def inputs() -> DrawInputs:
            temperature, min_p, top_p = bucket.numbers.unbind(1)
            top_k, high_bits, low_bits = bucket.integers[:, TOP_K:CHAIN_END].unbind(1)
            return DrawInputs(temperature.float(), min_p.float(), top_p, top_k, high_bits, low_bits)

        return inputs
