"""Decode steps on a CPU: recorded once per batch size, then repeated without Python in between.

A step of one token per sequence makes the same native calls every time. Between two of them Python
takes some microseconds, as much as many a kernel, and more when the weights that stream past have
driven the interpreter out of the caches. So the first step of a batch size is recorded while it
runs: which kernels and sums over shared memory it called, with which arguments. Later ones copy
their inputs to where that one had them and make the same calls (`csrc/recording.h`).

In hybrids the places of keys and values are inputs, too. Their buffers have room for a number of
pages per sequence that doubles when it no longer suffices; then steps are recorded again.

What such a recording would miss, torch's operators and native calls that cannot be repeated, is
watched for: it spoils the recording, and steps go on from Python.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sidewinder.engine.counted import CallCounter
from sidewinder.engine.decode_sizes import FEWEST_PAGES
from sidewinder.models.base import Model
from sidewinder.ops import native, native_linear
from sidewinder.ops.launching import power_of_two
from sidewinder.ops.linear import linear
from sidewinder.ops.workspace import Workspace, results_in
from sidewinder.parallel.errors import RankFailure
from sidewinder.state.batch import PackedBatch, Sequences
from sidewinder.state.decode_index import DecodeBuffers, DecodeIndex
from sidewinder.state.pool import StatePool

LARGEST_BATCH = 64
"""Larger batches are not recorded: their kernels take far longer than Python between them."""


@dataclass(frozen=True)
class RecordedStep:
    """What one batch size calls, and where it reads and writes.

    Attributes:
        recording: its native calls.
        embedded, seqs: its inputs, to be filled in; a hybrid's index is another.
        hidden: its result.
        calls: collectives in it.
    """

    recording: Any
    embedded: Tensor
    seqs: Sequences
    hidden: Tensor
    calls: int

    def replay(self, embedded: Tensor, seqs: Sequences) -> Tensor:
        """The step's result for these inputs, valid until the next one."""
        self.embedded.copy_(embedded)
        self.seqs.slots.copy_(seqs.slots)
        self.seqs.sources.copy_(seqs.sources)
        self.seqs.fresh.copy_(seqs.fresh)
        self.recording.replay()
        return self.hidden


class RecordedSteps:
    """`model.forward` of steps that only decode.

    Args:
        model, pool: this rank's, on the CPU.
        counter: of the model's collectives; goes on counting in replays.
    """

    def __init__(self, model: Model, pool: StatePool, counter: CallCounter) -> None:
        self._model, self._pool, self._counter = model, pool, counter
        self._steps: dict[tuple[int, int], RecordedStep] = {}
        self._places: dict[int, DecodeBuffers] = {}
        self._workspace = Workspace()
        self.refused = ""
        """Why nothing can be recorded, once that was tried."""

    def serves(self, batch: PackedBatch) -> bool:
        """Whether a step is one that can be repeated."""
        rows, dtype = batch.seqs.n_seqs, self._model.final_norm.dtype
        only_decodes = batch.seqs.n_decodes == rows <= LARGEST_BATCH
        ours = linear.cpu_backend == "native" and native_linear.multiplies(rows, dtype)
        return only_decodes and ours and not self.refused

    def forward(self, batch: PackedBatch) -> Tensor:
        """As `Model.forward`, the same bits; the result is valid until the next call.

        Raises:
            RankFailure: if the ranks fail to meet in one of the step's sums.
        """
        n_pages = self._pages_of(batch)
        if n_pages:
            self._place(batch, n_pages)
        embedded = self._model.embed(batch.token_ids)
        step = self._steps.get((batch.seqs.n_seqs, n_pages))
        if step is None:
            return self._record(embedded, batch.seqs, n_pages)
        self._counter.calls += step.calls
        try:
            return step.replay(embedded, batch.seqs)
        except RuntimeError as error:
            tp = self._model.collectives.tp
            if tp.size == 1:
                raise
            raise RankFailure(
                f"rank {tp.rank} of {tp.size}: a decode step's sums over "
                f"{self._model.collectives.path} failed, {error}"
            ) from error

    def _pages_of(self, batch: PackedBatch) -> int:
        """Room for KV pages per sequence that the step needs; 0 for pure SSMs."""
        if self._pool.kv is None:
            return 0
        return power_of_two(max(batch.starts) // self._pool.kv.page_size + 1, least=FEWEST_PAGES)

    def _place(self, batch: PackedBatch, n_pages: int) -> None:
        """Say where the batch's keys and values are, in buffers that all batch sizes share."""
        assert self._pool.kv is not None, "a hybrid's pool has KV pages"
        if n_pages not in self._places:
            page_size = self._pool.kv.page_size
            self._places[n_pages] = DecodeBuffers(LARGEST_BATCH, n_pages, page_size)
        self._places[n_pages].fill(batch.page_tables, batch.starts)

    def _record(self, embedded: Tensor, seqs: Sequences, n_pages: int) -> Tensor:
        """Run the step, and keep it."""
        index: DecodeIndex | None = None
        if n_pages:
            index = self._places[n_pages].first(seqs.n_seqs)
        embedded = embedded.clone()
        seqs = Sequences(
            seqs.cu_seqlens.clone(), seqs.slots.clone(), seqs.sources.clone(), seqs.fresh.clone(),
            seqs.bounds, seqs.n_decodes,
        )  # fmt: skip
        before = self._counter.calls
        recording = native.new_recording()
        with results_in(self._workspace), _TorchOperators(recording.spoil):
            recording.begin()
            try:
                hidden = self._model.run_layers(embedded, seqs, self._pool, index)
            finally:
                recording.end()
        self.refused = recording.spoiled_by
        if self.refused:
            logging.getLogger(__name__).info("steps are not recorded: %s", self.refused)
            return hidden
        calls = self._counter.calls - before
        step = RecordedStep(recording, embedded, seqs, hidden, calls)
        self._steps[seqs.n_seqs, n_pages] = step
        return hidden


class _TorchOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports torch's operators that do more than view memory."""

    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._report = report

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Asked by torch. To skip it, torch would import it, for a second or two in the first
        decode step; nothing here is compiled."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if not _only_views(func):
            self._report(f"torch's operator {func}")
        return func(*args, **(kwargs or {}))


def _only_views(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(
        result.alias_info is not None and not result.alias_info.is_write for result in returns
    )


def recorded_steps(
    option: str, model: Model, pool: StatePool, counter: CallCounter
) -> RecordedSteps | None:
    """What repeats decode steps, where the option `cuda_graphs` and the device allow it."""
    plain = option == "off" or pool.conv.device.type != "cpu" or not native.is_available()
    return None if plain else RecordedSteps(model, pool, counter)
