"""One rank's share of the work: weights, state, and the steps that run on them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives
from sidewinder.collectives.quantised.all_reduce import quantised
from sidewinder.collectives.thresholds import use_thresholds
from sidewinder.config import EngineConfig, ModelConfig
from sidewinder.engine.buckets import Started
from sidewinder.engine.counted import CallCounter
from sidewinder.engine.decode_graphs import DecodeGraphs
from sidewinder.engine.loading import load_model
from sidewinder.engine.memory import gather_integer
from sidewinder.engine.packing import drawing_slots, kept_rows, pack_step
from sidewinder.engine.plan import SequenceResult, SequenceStep, StepPlan, StepResult
from sidewinder.engine.prompt_graphs import PromptGraphs, prompt_graphs_for
from sidewinder.engine.rank_state import open_state
from sidewinder.engine.recorded import RecordedSteps, recorded_steps
from sidewinder.engine.recorders import Spare, recorder_for
from sidewinder.engine.report import RunnerReport
from sidewinder.engine.request import NO_NEXT_TOKEN
from sidewinder.models.base import Model
from sidewinder.ops.dispatch import runs_triton
from sidewinder.parallel.cores import prepare_for_steps
from sidewinder.parallel.devices import torch_device
from sidewinder.parallel.group import TensorParallel
from sidewinder.sampling.finite import check_drawn, check_finite
from sidewinder.sampling.params import TokenLogprobs
from sidewinder.sampling.sampler import Sampler, token_logprobs
from sidewinder.sampling.vocab_shard import VocabShard
from sidewinder.sensitivity import policy_for
from sidewinder.state.cache.ops import StateOp
from sidewinder.state.cache.store import SnapshotStore
from sidewinder.state.pool import StatePool

LOGITS_PER_BLOCK = 1 << 24
"""Logits that are held at once when whole prompts are scored: 64 MiB in float32."""


def build_runner(
    engine: EngineConfig, model: ModelConfig, tp: TensorParallel, collectives: Collectives
) -> "Runner":
    """Load this rank's weights and make its runner; every rank calls at the same time.

    Args:
        engine: `device`, `dtype` resolved ("cuda" is the current GPU); `model` is a local folder.
        model: the architecture.
        tp: which rank of how many.
        collectives: the group of `tp`.

    Raises:
        ValueError: if the checkpoint, `tp` or the policy of sums does not fit, or memory is too
            small.
    """
    use_thresholds(collectives, engine.thresholds)
    collectives = quantised(collectives, policy_for(engine, model), model)
    device, counter = torch_device(engine.device), CallCounter()
    built, weight_bytes = load_model(engine, model, collectives, counter)
    recorder = recorder_for(engine.cuda_graphs, device, collectives)
    # Graphs take a slot and a page that the scheduler does not know.
    state = open_state(engine, built, collectives, n_spare=int(recorder is not None))
    graphs = prompts = None
    if recorder is not None:
        spare = Spare(state.size.all_slots, state.size.n_pages)
        graphs = DecodeGraphs(built, state.pool, recorder, spare, counter)
        prompts = prompt_graphs_for(built, state.pool, recorder, spare, counter)
    report = RunnerReport(
        pool=state.size,
        cache=state.cache,
        device=device.type,
        dtype=engine.dtype,
        weight_bytes=tuple(gather_integer(weight_bytes, device, collectives)),
        slot_bytes=state.slot_bytes,
        page_bytes=state.page_bytes,
        collectives=collectives.path,
        looks_ahead=graphs is not None,
    )
    answers = tp.rank == 0 or engine.launch == "torchrun"
    agree = partial(agree_on, device, collectives)
    store = SnapshotStore(state.pool, model, tp, engine.state_cache_dtype, agree)
    prepare_for_steps(model)
    recorded = recorded_steps(engine.cuda_graphs, built, state.pool, counter)
    return Runner(built, state.pool, store, report, counter, answers, graphs, prompts, recorded)


def agree_on(device: torch.device, collectives: Collectives, flags: Sequence[bool]) -> list[bool]:
    """Which of the flags are set on every rank; each gives as many."""
    own = torch.tensor(flags, dtype=torch.int64, device=device)
    gathered = collectives.all_gather(own, [len(flags)] * collectives.tp.size)
    good: list[bool] = gathered.view(collectives.tp.size, len(flags)).all(dim=0).tolist()
    return good


class Runner:
    """Runs steps on one rank; all ranks get the same plans and draw the same tokens.

    Args:
        model: this rank's.
        pool: this rank's state.
        store: kept states.
        report: sizes, for the caller.
        counter: counts the model's collectives.
        answers: whether this rank's results are wanted; else logits and scores are not made up.
        graphs: runs the steps that only decode, on a GPU; None runs them like all others.
        prompts: runs short steps with prompts there.
        recorded: runs the steps that only decode, on a CPU.
    """

    def __init__(
        self,
        model: Model,
        pool: StatePool,
        store: SnapshotStore,
        report: RunnerReport,
        counter: CallCounter,
        answers: bool = True,
        graphs: DecodeGraphs | None = None,
        prompts: PromptGraphs | None = None,
        recorded: RecordedSteps | None = None,
    ) -> None:
        self.model = model
        self.pool = pool
        self.store = store
        self._report = report
        self._counter = counter
        self._answers = answers
        self._graphs = graphs
        self._prompts = prompts
        self._recorded = recorded
        self._started: Started | None = None
        self._device = pool.conv.device
        shard = VocabShard(model.dims.vocab_sizes, model.collectives)
        self._sampler = Sampler(model.config.vocab_size, self._device, shard)
        self._block_rows = max(1, LOGITS_PER_BLOCK // model.config.vocab_size)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> StepResult:
        """Run one packed batch; draw, score and return what the plan asks for.

        Raises:
            RuntimeError: if logits hold NaN or infinity.
        """
        failed = self.store.apply(plan.state_ops)
        if not plan.sequences:
            return StepResult([], failed)
        for admission in plan.admissions:
            self._sampler.admit(admission)
        calls = self._counter.calls
        sequences = plan.sequences
        if self.pool.poison and not plan.started:
            for part in sequences:
                self.pool.poison_entered(part.slot, part.start, part.pages)
                for slot in part.draft_slots:
                    self.pool.poison_entered(slot, start=0, pages=())
        results = [SequenceResult() for _ in sequences]
        if self._graphs is not None and self._graphs.serves(sequences):
            ahead = self._step_by_graph(self._graphs, plan, results)
            if ahead is not None:
                return StepResult(results, failed, ahead)
        rows = None if self._prompts is None else self._prompts.last_rows(sequences)
        if rows is None:
            self._step_plainly(plan, results)
        else:
            self._draw(plan, rows.__getitem__, results)
        if all(part.sample and part.is_single for part in sequences):
            self._report = replace(self._report, collectives_per_step=self._counter.calls - calls)
        return StepResult(results, failed)

    def _step_plainly(self, plan: StepPlan, results: list[SequenceResult]) -> None:
        """Results of any step."""
        sequences = plan.sequences
        chained, paged = runs_triton(self._device), self.pool.kv is not None
        batch, rows = pack_step(sequences, self._device, paged, chained)
        if self._recorded is not None and self._recorded.serves(batch):
            hidden = self._recorded.forward(batch)
        else:
            hidden = self.model.forward(batch, self.pool)

        def drawn_rows(indices: list[int]) -> Tensor:
            return hidden[[row for i in indices for row in rows[i][-len(sequences[i].slots) :]]]

        self._draw(plan, drawn_rows, results)
        for part, own, result in zip(sequences, rows, results, strict=True):
            if part.score or part.return_logits:
                self._read_rows(part, hidden[own[0] : own[-1] + 1], result)

    def _step_by_graph(
        self, graphs: DecodeGraphs, plan: StepPlan, results: list[SequenceResult]
    ) -> bool | None:
        """Results of a step that only decodes; whether the one after it was started before. None,
        and nothing was run, if there is no memory for its graph."""
        sequences = plan.sequences
        started = self._started if plan.started else graphs.start(sequences, self._sampler)
        if started is None:
            assert not plan.started, "the plan's step was started"
            return None
        self._started = None
        if plan.ahead and started.drawing is not None and graphs.serves(plan.ahead):
            self._started = graphs.start(plan.ahead, self._sampler)
        tokens = graphs.finish(started, sequences, self._sampler)
        self._report = replace(self._report, collectives_per_step=started.calls)
        if self._started is None:
            self._give(sequences, range(len(sequences)), started.logits, tokens, results)
            return False
        # Where a step is started ahead nobody wants logprobs, and these logits are gone.
        for result, token in zip(results, tokens, strict=True):
            result.tokens = [token]
        return True

    @torch.inference_mode()
    def apply(self, ops: Sequence[StateOp]) -> dict[int, str]:
        """Move kept states without a step; says which operations could not be done, and why."""
        return self.store.apply(ops)

    def open_disk(self, folder: str, fingerprint: str) -> None:
        """Where kept states are written to and read from."""
        self.store.open_disk(folder, fingerprint)

    def report(self) -> RunnerReport:
        """What the ranks hold and how they talk."""
        return replace(self._report, waited_s=self.model.collectives.waited_s)

    def agree(self, value: int) -> int:
        """Rank 0's `value` (below 2**63), on every rank."""
        own = torch.tensor([value], dtype=torch.int64, device=self._device)
        return int(self.model.collectives.broadcast(own))

    def _draw(
        self,
        plan: StepPlan,
        drawn_rows: Callable[[list[int]], Tensor],
        results: list[SequenceResult],
    ) -> None:
        """Draw where the plan asks for it; `drawn_rows` gives the rows behind which some sequences
        draw: the last one, and in front of it one for each draft."""
        drawing = [index for index, part in enumerate(plan.sequences) if part.sample]
        if not drawing:
            return
        parts = [plan.sequences[index] for index in drawing]
        logits = self.model.local_logits(drawn_rows(drawing))
        allowed = [mask for part in parts for mask in part.masks]
        tokens = self._sampler.sample(logits, drawing_slots(parts), allowed)
        self._give(plan.sequences, drawing, logits, tokens, results)

    def _give(
        self,
        sequences: Sequence[SequenceStep],
        drawing: Sequence[int],
        logits: Tensor,
        tokens: list[int],
        results: list[SequenceResult],
    ) -> None:
        """Tokens drawn for some of the sequences into their results, with logprobs if wanted. Those
        drawn behind a wrong draft count for nothing.

        Raises:
            NotFinite: if logits that count hold NaN or infinity.
        """
        parts = [sequences[index] for index in drawing]
        kept = kept_rows(parts, tokens)
        rows = [row for own in kept for row in own]
        check_drawn(tokens, rows)
        slots = [part.slot for part, own in zip(parts, kept, strict=True) for _ in own]
        some = logits if len(rows) == len(tokens) else logits[rows]
        drawn = [tokens[row] for row in rows]
        logprobs = iter(self._sampler.logprobs(some, slots, drawn, report=self._answers))
        for index, part, own in zip(drawing, parts, kept, strict=True):
            results[index].tokens = [tokens[row] for row in own]
            results[index].logprobs = [each for each in islice(logprobs, len(own)) if each]
            if part.drafts:
                last = part.slots[len(own) - 1]
                self._sampler.keep(part.slot, len(part.slots), len(own), last)

    def _read_rows(self, part: SequenceStep, hidden: Tensor, result: SequenceResult) -> None:
        """Scores or logits of all rows of one sequence, a block of rows at a time."""
        blocks = []
        for start in range(0, len(hidden), self._block_rows):
            logits = self.model.logits(hidden[start : start + self._block_rows])
            check_finite(logits.amax(-1))
            if not self._answers:
                continue
            if part.score:
                next_tokens = part.score[start : start + self._block_rows]
                result.scores += _score(logits, next_tokens, part.top_logprobs)
            if part.return_logits:
                blocks.append(logits.cpu())
        if blocks:
            result.logits = torch.cat(blocks).numpy()


def _score(logits: Tensor, next_tokens: Sequence[int], n_top: int) -> list[TokenLogprobs | None]:
    scores: list[TokenLogprobs | None] = [None] * len(next_tokens)
    known = [row for row, token in enumerate(next_tokens) if token != NO_NEXT_TOKEN]
    if known:
        found = token_logprobs(logits[known], [next_tokens[row] for row in known], n_top)
        for row, score in zip(known, found, strict=True):
            scores[row] = score
    return scores
