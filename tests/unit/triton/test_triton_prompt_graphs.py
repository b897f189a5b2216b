"""Short steps with prompts in a fixed shape give what plain ones give, whatever their lengths."""

import random
from dataclasses import dataclass, replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from triton_cases import DEVICE, overridden

from sidewinder.checkpoint.random import random_shard
from sidewinder.collectives.base import SingleRank
from sidewinder.config import EngineConfig
from sidewinder.engine import prompt_graphs
from sidewinder.engine import runner as runner_module
from sidewinder.engine.counted import CallCounter
from sidewinder.engine.plan import Admission, SequenceStep, StepPlan
from sidewinder.engine.prompt_graphs import (
    PromptGraphs,
    StepShape,
    prompt_graphs_for,
    shapes_for,
)
from sidewinder.engine.recorders import CudaRecorder, EagerRecorder, Spare
from sidewinder.engine.runner import build_runner
from sidewinder.layers import overlap
from sidewinder.layers.overlap import halves, split
from sidewinder.models.registry import build_model
from sidewinder.ops.dispatch import forced
from sidewinder.parallel.group import SINGLE
from sidewinder.sampling import SamplingParams
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import assert_close, run_ranks, tiny_config

SLOTS = 4


@dataclass(frozen=True)
class Part:
    """Some tokens of the sequence in a slot; it is new there if `new`."""

    slot: int
    n_tokens: int
    new: bool = False
    sample: bool = True


SIZES = {"SINGLES": (0, 2, 4), "PROMPTS": (2, 4), "FEWEST_ROWS": 8, "ROW_SIZES": 4}
"""Small ones: the interpreter takes its time."""
STEPS = [
    [Part(2, 5, new=True)],
    [Part(2, 1), Part(0, 7, new=True, sample=False)],
    # A prompt goes on, another begins, a prompt of one token, and one decodes.
    [Part(2, 1), Part(1, 1, new=True), Part(0, 4), Part(3, 2, new=True)],
    # The same shape with other lengths; a slot changes hands.
    [Part(0, 1), Part(3, 1), Part(2, 3), Part(1, 5, new=True)],
    # All rows are used, and too many for a graph.
    [Part(2, 1), Part(0, 14, new=True)],
    [Part(1, 1), Part(0, 33)],
]


class CountingRecorder:
    """Counts recordings: CUDA graphs on a card, if there is one rank; several are threads here and
    wait on the host."""

    def __init__(self, tp=1):
        self.inner = CudaRecorder() if DEVICE == "cuda" and tp == 1 else EagerRecorder()
        self.recorded = 0

    def record(self, run):
        self.recorded += 1
        return self.inner.record(run)


def answers(family, collectives):
    """Tokens and logprobs of all steps, and the slots' state after them."""
    engine = EngineConfig(
        "random", device=DEVICE, dtype="float32", threads=1, max_batch_size=SLOTS,
        load_format="random", tp=collectives.tp.size, overlap="both",
    )  # fmt: skip
    runner = build_runner(
        engine, tiny_config(family, num_hidden_layers=2), collectives.tp, collectives
    )
    params, draws = SamplingParams(temperature=0.8, logprobs=2), random.Random(1)
    starts, found = {}, []
    for step in STEPS:
        parts, admissions = [], []
        for part in step:
            if part.new:
                starts[part.slot] = 0
                admissions.append(Admission(part.slot, params, part.slot, ()))
            tokens = tuple(draws.choices(range(90), k=part.n_tokens))
            parts.append(SequenceStep(part.slot, tokens, starts[part.slot], sample=part.sample))
            starts[part.slot] += part.n_tokens
        results = runner.step(StepPlan(tuple(parts), tuple(admissions))).sequences
        found.append([(result.token, result.logprobs) for result in results])
    return found, (runner.pool.conv[:, :SLOTS], runner.pool.ssm[:, :SLOTS])


@pytest.fixture
def graphed(monkeypatch):
    """Makes runners take fixed shapes where they can; the recorder that they use."""

    def use(tp):
        recorder = CountingRecorder(tp)
        monkeypatch.setattr(runner_module, "recorder_for", lambda *_: recorder)
        monkeypatch.setattr(overlap, "LEAST_ROWS", 2)
        for name, size in (SIZES | {"PLAIN_RUNS": 0, "most_rows": lambda *_: 32}).items():
            monkeypatch.setattr(prompt_graphs, name, size)
        return recorder

    return use


@pytest.mark.parametrize(
    ("family", "tp", "cut"),
    [
        ("mamba", 1, {}),
        ("falcon_mamba", 2, {"scan_pipelined": {"chunk": 4}}),
        ("mamba2", 1, {"ssd_wide": {"chunk": 16, "block_t": 16}}),
    ],
)
def test_same_answers(family, tp, cut, graphed):
    with forced("triton"), overridden(**cut):
        plain = run_ranks(tp, lambda _, collectives: answers(family, collectives))
        recorder = graphed(tp)
        fixed = run_ranks(tp, lambda _, collectives: answers(family, collectives))
        shapes = {shape_of(step) for step in STEPS} - {None}
    assert len(shapes) == 4
    assert recorder.recorded == tp * len(shapes)
    for (expected, states), (found, found_states) in zip(plain, fixed, strict=True):
        for state, found_state in zip(states, found_states, strict=True):
            assert_close("state", state, found_state, 1e-5)
        for some, others in zip(expected, found, strict=True):
            assert [token for token, _ in some] == [token for token, _ in others]
            for (_, one), (_, other) in zip(some, others, strict=True):
                assert (one is None) == (other is None)
                if one is not None:
                    assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def shape_of(step):
    return StepShape.of([SequenceStep(part.slot, (0,) * part.n_tokens, 0) for part in step], 32)


def sequence(n_tokens, **options):
    return SequenceStep(0, (1,) * n_tokens, 0, **options)


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ([1, 1], None),  # nothing but single tokens
        ([2], StepShape(0, 2, 64)),
        ([65], StepShape(0, 2, 128)),
        ([1, 61], StepShape(4, 2, 128)),
        ([1] * 5 + [30, 9], StepShape(16, 8, 64)),
        ([1] * 65 + [30], StepShape(128, 2, 192)),
        ([1] * 257 + [30], None),
        ([2] * 8, StepShape(0, 32, 64)),
        ([2] * 32, None),
        ([1, 1020], StepShape(4, 2, 1024)),
        ([1, 1021], StepShape(4, 2, 1152)),
        ([4097], StepShape(0, 2, 4608)),
        ([6145], None),
        ([1536] * 2, StepShape(0, 8, 3072)),
        ([1536] * 2 + [2], None),  # half as many of several prompts
    ],
)
def test_shapes_hold_their_steps(lengths, shape):
    assert StepShape.of([sequence(length) for length in lengths], 6144) == shape


def test_shapes_for_a_batch_are_those_of_its_steps():
    for batch in (1, 2, 3, 6, 9, 18):
        found = set()
        for n_prompts in range(1, min(batch, 32) + 1):
            for n_singles in range(batch - n_prompts + 1):
                for length in (2, *range(9, 1300, 31)):
                    lengths = [1] * n_singles + [2] * (n_prompts - 1) + [length]
                    found.add(StepShape.of([sequence(length) for length in lengths], 1280))
        assert set(shapes_for(batch, 1280)) == found - {None}


def with_empty_model(check):
    """Calls `check` with graphs of a model that returns zeros, and their recorder."""

    def run(own, collectives):
        config = tiny_config("mamba", num_hidden_layers=1)
        weights = random_shard(config, own, torch.float32, DEVICE)
        model = build_model(config, own, weights, collectives)
        pool = StatePool(config, model.dims, 2, torch.float32, DEVICE)
        recorder = CountingRecorder()
        counter = CallCounter()
        graphs = PromptGraphs(model, pool, recorder, Spare(1), counter)

        def forward(batch, _):
            counter.calls += 3
            return torch.zeros(batch.seqs.n_tokens, config.d_model, device=DEVICE)

        model.forward = forward
        check(graphs, recorder, config)

    run_ranks(1, run)


def test_shapes_are_recorded_once_they_come_again_and_scored_steps_never():
    def check(graphs, recorder, config):
        for part in (sequence(5, score=(1,) * 5), sequence(5, return_logits=True)):
            assert [graphs.last_rows([part]) for _ in range(4)] == [None] * 4
        results = [graphs.last_rows([sequence(n)]) for n in (5, 6, 7, 8)]
        assert results[:2] == [None, None]
        assert recorder.recorded == 1
        assert [result.shape for result in results[2:]] == [(1, config.d_model)] * 2

    with_empty_model(check)


def test_collectives_are_counted_in_every_replay():
    def check(graphs, recorder, _):
        # As a CUDA graph: what it holds runs without the model's Python.
        recorder.inner = SimpleNamespace(record=lambda run: run() or (lambda: None))
        for calls in (0, 0, 3, 6, 9):
            graphs.last_rows([sequence(5)])
            assert graphs._counter.calls == calls

    with_empty_model(check)


def test_the_graph_that_was_not_used_for_longest_makes_room(monkeypatch):
    monkeypatch.setattr(prompt_graphs, "MOST_GRAPHS", 2)
    monkeypatch.setattr(prompt_graphs, "PLAIN_RUNS", 1)
    monkeypatch.setattr(prompt_graphs, "PLAIN_RUNS_AGAIN", 3)

    def check(graphs, recorder, _):
        def recorded(n_tokens):
            before = recorder.recorded
            ran = graphs.last_rows([sequence(n_tokens)]) is not None
            return ran, recorder.recorded - before

        for n_tokens in (60, 120, 60, 120):
            recorded(n_tokens)
        assert [recorded(n) for n in (120, 60, 190)] == [(True, 0), (True, 0), (False, 0)]
        assert recorded(190) == (True, 1), "120's makes room"
        assert [recorded(n) for n in (60, 190)] == [(True, 0)] * 2
        plain = [recorded(120) for _ in range(3)]
        assert plain == [(False, 0)] * 3, "it must come more often now than at first"
        assert recorded(120) == (True, 1)

    with_empty_model(check)


def test_only_where_operators_are_tritons_and_nothing_attends():
    def graphs(family):
        config = tiny_config(family)
        dims = LocalDims.of(config, SINGLE)
        pool = StatePool(config, dims, 2, torch.float32, DEVICE, n_pages=2)
        model = SimpleNamespace(config=config, collectives=SingleRank())
        return prompt_graphs_for(model, pool, EagerRecorder(), Spare(1), CallCounter())

    # On a CPU torch's operators run unless others are named, and they read lengths on the host.
    assert (graphs("mamba") is not None) == (DEVICE == "cuda")
    with forced("torch"):
        assert graphs("mamba") is None
    with forced("triton"):
        assert graphs("mamba") is not None
        assert graphs("mamba2") is not None
        assert graphs("zamba") is None


@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.integers(0, 3))
def test_halves_of_a_fixed_shape_are_those_of_its_step(lengths, n_singles):
    """In a step's place, boundaries of a fixed shape are cut as the step's own would be."""
    every = [1] * n_singles + lengths
    starts = [place % 2 for place in range(len(every))]
    seqs = pack([[0] * length for length in every], list(range(len(every))), starts).seqs
    fixed = replace(seqs, fixed_shape=True)
    row = max(seqs.n_tokens // 2, n_singles)
    with mock.patch.object(overlap, "LEAST_ROWS", 1):
        parts = halves(fixed)
    if row == n_singles:
        assert parts is None
        return
    for part, expected in zip(parts, split(seqs, row), strict=True):
        sizes = part.cu_seqlens.diff()
        assert part.fixed_shape
        assert part.n_decodes == expected.n_decodes
        assert part.n_tokens == int(part.cu_seqlens[-1]) == expected.n_tokens
        assert sizes[sizes > 0].tolist() == expected.cu_seqlens.diff().tolist()
        assert part.slots[sizes > 0].tolist() == expected.slots.tolist()
        assert part.fresh[sizes > 0].tolist() == expected.fresh.tolist()
        # What a part has no rows of is not new to it once the other has begun it.
        ended = part.slots[sizes == 0].tolist()
        assert not [slot for slot in ended if part is parts[1] and part.fresh[slot - n_singles]]
