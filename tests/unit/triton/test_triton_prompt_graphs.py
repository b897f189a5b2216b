"""Short steps with prompts in a fixed shape give what plain ones give, whatever their lengths."""

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from full_recorder import FullRecorder
from graph_cases import STEPS, CountingRecorder, answers, assert_same, fixed_shapes, shapes_of
from hypothesis import given
from hypothesis import strategies as st
from triton_cases import DEVICE, overridden

from sidewinder.checkpoint.random import random_shard
from sidewinder.collectives.base import SingleRank
from sidewinder.engine import prompt_graphs
from sidewinder.engine.counted import CallCounter
from sidewinder.engine.plan import SequenceStep
from sidewinder.engine.prompt_graphs import PromptGraphs, prompt_graphs_for
from sidewinder.engine.prompt_shapes import StepShape, shapes_for
from sidewinder.engine.recorders import EagerRecorder, NoMemoryError, Spare
from sidewinder.layers import overlap
from sidewinder.layers.overlap import halves, split
from sidewinder.models.registry import build_model
from sidewinder.ops.dispatch import forced
from sidewinder.parallel.errors import RankFailure
from sidewinder.parallel.group import SINGLE
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import run_ranks, tiny_config

pytestmark = pytest.mark.usefixtures("unchecked_integers")


@pytest.mark.parametrize(
    ("family", "tp", "cut"),
    [
        ("mamba", 1, {}),
        ("falcon_mamba", 2, {"scan_pipelined": {"chunk": 4}}),
        ("mamba2", 1, {"ssd_wide": {"chunk": 16, "block_t": 16}}),
    ],
)
def test_same_answers(family, tp, cut):
    with forced("triton"), overridden(**cut):
        plain = run_ranks(tp, lambda _, collectives: answers(family, collectives))
        with fixed_shapes(tp) as recorder:
            fixed = run_ranks(tp, lambda _, collectives: answers(family, collectives))
            shapes = shapes_of(STEPS)
    assert len(shapes) == 4
    assert recorder.recorded == tp * len(shapes)
    assert_same(plain, fixed, 1e-5)


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


@pytest.mark.parametrize(
    ("starts", "pages"), [([0, 0], 16), ([255, 0], 16), ([256, 0], 32), ([0, 507], 32),
                          ([0, 508], 64), ([16_383, 0], 1024), ([16_384, 0], None)],
)  # fmt: skip
def test_shapes_of_hybrids_have_room_for_their_pages(starts, pages):
    parts = [SequenceStep(0, (1,) * n, start) for n, start in zip((1, 5), starts, strict=True)]
    shape = StepShape.of(parts, 6144, page_size=16)
    assert shape == (pages and StepShape(4, 2, 64, pages))


def test_shapes_for_a_batch_are_those_of_its_steps():
    for batch in (1, 2, 3, 6, 9, 18):
        found = set()
        for n_prompts in range(1, min(batch, 32) + 1):
            for n_singles in range(batch - n_prompts + 1):
                for length in (2, *range(9, 1300, 31)):
                    lengths = [1] * n_singles + [2] * (n_prompts - 1) + [length]
                    found.add(StepShape.of([sequence(length) for length in lengths], 1280))
        assert set(shapes_for(batch, 1280)) == found - {None}


def with_empty_model(check, tp=1):
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

    run_ranks(tp, run)


def test_shapes_are_recorded_once_they_come_again_and_scored_steps_and_drafts_never():
    def check(graphs, recorder, config):
        drafting = sequence(2, sample=True, draft_slots=(1,))
        for part in (sequence(5, score=(1,) * 5), sequence(5, return_logits=True), drafting):
            assert [graphs.last_rows([part, sequence(5)]) for _ in range(4)] == [None] * 4
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


@pytest.mark.parametrize("ended", [False, True])
def test_without_memory_for_a_graph_steps_run_plainly(ended, caplog):
    """Those that have one go on; the rest are not tried again."""

    def check(graphs, recorder, config):
        def ran(n_tokens):
            rows = graphs.last_rows([sequence(n_tokens)])
            return rows is not None and rows.shape == (1, config.d_model)

        assert [ran(5) for _ in range(4)] == [False, False, True, True]
        calls = graphs._counter.calls
        recorder.inner = full = FullRecorder(ended)
        assert [ran(100) for _ in range(6)] == [False] * 6
        assert [ran(200) for _ in range(6)] == [False] * 6
        assert full.tried == 1
        assert graphs._counter.calls == calls, "what was not recorded did not run"
        assert ran(6)

    with_empty_model(check)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "a step of 128 tokens with prompts cannot be recorded" in record.message
    assert "run without one from here on" in record.message


def test_ranks_that_would_have_to_agree_end_without_memory():
    def check(graphs, recorder, _):
        recorder.inner = FullRecorder(ended=False)
        assert [graphs.last_rows([sequence(5)]) for _ in range(2)] == [None] * 2
        with pytest.raises(NoMemoryError, match=r"out of memory.*cuda_graphs"):
            graphs.last_rows([sequence(5)])

    with_empty_model(check, tp=2)


@pytest.mark.parametrize("error", [RuntimeError("no"), RankFailure("rank 1 of 2 died")], ids=repr)
def test_other_errors_end_a_recording(error):
    def refuse(_):
        raise error

    def check(graphs, recorder, _):
        recorder.inner = SimpleNamespace(record=refuse)
        assert [graphs.last_rows([sequence(5)]) for _ in range(2)] == [None] * 2
        with pytest.raises(type(error), match=str(error)) as raised:
            graphs.last_rows([sequence(5)])
        assert not isinstance(raised.value, NoMemoryError)

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


def test_only_where_operators_are_tritons_and_attention_reads_lengths(monkeypatch):
    def graphs(family, dtype=torch.float32):
        config = tiny_config(family)
        dims = LocalDims.of(config, SINGLE)
        pool = StatePool(config, dims, 2, dtype, DEVICE, n_pages=2)
        model = SimpleNamespace(config=config, collectives=SingleRank())
        return prompt_graphs_for(model, pool, EagerRecorder(), Spare(1), CallCounter())

    # On a CPU torch's operators run unless others are named, and they read lengths on the host.
    assert (graphs("mamba") is not None) == (DEVICE == "cuda")
    with forced("torch"):
        assert graphs("mamba") is None
    with forced("triton"):
        assert graphs("mamba") is not None
        assert graphs("mamba2") is not None
        assert graphs("zamba") is None, "matrix units do not multiply float32 exactly"
        monkeypatch.setattr(prompt_graphs, "was_timed", lambda: True)
        assert graphs("zamba", torch.bfloat16) is not None
        monkeypatch.setattr(prompt_graphs, "was_timed", lambda: False)
        assert graphs("zamba", torch.bfloat16) is None, "no card has run its attention"
        assert graphs("mamba", torch.bfloat16) is not None


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
