"""Steps with prompts, run plainly or in fixed shapes: what both give."""

import random
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import pytest
from triton_cases import DEVICE

from sidewinder.config import EngineConfig
from sidewinder.engine import prompt_graphs, prompt_shapes
from sidewinder.engine import runner as runner_module
from sidewinder.engine.plan import Admission, SequenceStep, StepPlan
from sidewinder.engine.prompt_shapes import StepShape
from sidewinder.engine.recorders import CudaRecorder, EagerRecorder
from sidewinder.engine.runner import build_runner
from sidewinder.layers import overlap
from sidewinder.sampling import SamplingParams
from sidewinder.state.spec import PAGE_SIZE
from sidewinder.testing import assert_close, tiny_config

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
MOST_ROWS = 32
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


LAYERS = {
    "zamba": {"num_hidden_layers": 3, "attn_layer_offset": 1},
    "bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1]},
}
"""Of the families that attend."""
PAGES = [(slot, slot + 12, slot + 4, slot + 8) for slot in range(SLOTS)]
"""Of each slot's sequence."""


def answers(family, collectives, dtype="float32", steps=STEPS, weight_dtype="auto", **changes):
    """Tokens and logprobs of all steps, and the slots' state after them, keys and values too."""
    engine = EngineConfig(
        "random", device=DEVICE, dtype=dtype, threads=1, max_batch_size=SLOTS, max_model_len=64,
        load_format="random", tp=collectives.tp.size, overlap="both", weight_dtype=weight_dtype,
        cuda_graphs="off",  # `fixed_shapes` has a recorder all the same.
    )  # fmt: skip
    config = tiny_config(family, **LAYERS.get(family, {"num_hidden_layers": 2}), **changes)
    runner = build_runner(engine, config, collectives.tp, collectives)
    params, draws = SamplingParams(temperature=0.8, logprobs=2), random.Random(1)
    starts, found = {}, []
    for step in steps:
        parts, admissions = [], []
        for part in step:
            if part.new:
                starts[part.slot] = 0
                admissions.append(Admission(part.slot, params, part.slot, ()))
            tokens = tuple(draws.choices(range(90), k=part.n_tokens))
            start, pages = starts[part.slot], ()
            starts[part.slot] += part.n_tokens
            if runner.pool.kv is not None:
                pages = PAGES[part.slot][: -(-starts[part.slot] // PAGE_SIZE)]
            parts.append(SequenceStep(part.slot, tokens, start, pages, sample=part.sample))
        results = runner.step(StepPlan(tuple(parts), tuple(admissions))).sequences
        found.append([(result.tokens, result.logprobs) for result in results])
    states = [runner.pool.conv[:, :SLOTS], runner.pool.ssm[:, :SLOTS]]
    if runner.pool.kv is not None:
        for slot, start in starts.items():
            states += runner.pool.kv.gather(PAGES[slot], start)
    return found, states


@contextmanager
def fixed_shapes(tp):
    """Inside, runners take fixed shapes where they can; gives the recorder that they use."""
    recorder = CountingRecorder(tp)
    with (
        mock.patch.object(runner_module, "recorder_for", return_value=recorder),
        mock.patch.object(overlap, "LEAST_ROWS", 2),
        mock.patch.multiple(prompt_shapes, FEWEST_PAGES=1, **SIZES),
        mock.patch.multiple(prompt_graphs, PLAIN_RUNS=0, most_rows=lambda *_: MOST_ROWS),
    ):
        yield recorder


def shapes_of(steps, page_size=0):
    """The fixed shapes of steps, where there are any; call it inside `fixed_shapes`."""
    starts, shapes = {}, set()
    for step in steps:
        parts = []
        for part in step:
            start = 0 if part.new else starts[part.slot]
            parts.append(SequenceStep(part.slot, (0,) * part.n_tokens, start))
            starts[part.slot] = start + part.n_tokens
        shapes.add(StepShape.of(parts, MOST_ROWS, page_size))
    return shapes - {None}


def assert_same(plain, fixed, tolerance):
    """Of all ranks: the same tokens; logprobs and states within the tolerance."""
    for (expected, states), (found, found_states) in zip(plain, fixed, strict=True):
        for state, found_state in zip(states, found_states, strict=True):
            assert state.isfinite().all()
            assert_close("state", state, found_state, tolerance)
        for some, others in zip(expected, found, strict=True):
            assert [tokens for tokens, _ in some] == [tokens for tokens, _ in others]
            for (_, ours), (_, theirs) in zip(some, others, strict=True):
                for one, other in zip(ours, theirs, strict=True):
                    assert one.logprob == pytest.approx(other.logprob, abs=10 * tolerance)
