"""Steps that are repeated from a recording give the bits of steps that run from Python."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared_memory_cases import on_ranks

from sidewinder.checkpoint.random import random_shard
from sidewinder.collectives.base import SingleRank
from sidewinder.engine.counted import CallCounter, CountedCollectives
from sidewinder.engine.recorded import LARGEST_BATCH, RecordedSteps, recorded_steps
from sidewinder.models.registry import build_model
from sidewinder.ops import dispatch, native
from sidewinder.parallel.errors import RankFailure
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import run_ranks, tiny_config

if not native.is_available():
    pytest.skip("built without the native module", allow_module_level=True)

from sidewinder import _native

STACKS = ("mamba", "falcon_mamba", "mamba2")
STEPS = ([0, 3, 1], [2], [1, 0, 2], [3], [3, 1, 2], [0])
"""Slots of each step; batches of three and of one are recorded once and repeated twice."""
SLOTS = 5
CHANGES = {"falcon_mamba": {"use_bias": False}, "mamba2, one group": {"n_groups": 1}}
"""Published models have no bias there; torch adds it, which is not repeated."""


class Rank:
    """A model with two pools: of steps that may be repeated, and of plain ones."""

    def __init__(self, family, collectives, dtype=torch.float32):
        config = tiny_config(family.split(",")[0], **CHANGES.get(family, {}))
        tp = collectives.tp
        self.counter = CallCounter()
        counted = CountedCollectives(collectives, self.counter)
        self.model = build_model(config, tp, random_shard(config, tp, dtype), counted)
        dims = LocalDims.of(config, tp)
        self.pool, self.plain = (
            StatePool(config, dims, SLOTS, dtype, poison=True) for _ in range(2)
        )
        self.recorded = RecordedSteps(self.model, self.pool, self.counter)

    def check(self, slots, starts, tokens=1):
        """One step of both kinds."""
        texts = [[(7 * slot + 3 * starts[slot] + n) % 50 for n in range(tokens)] for slot in slots]
        batch = pack(texts, slots, [starts[slot] for slot in slots])
        before = self.counter.calls
        expected = self.model.forward(batch, self.plain)
        plain_calls, before = self.counter.calls - before, self.counter.calls
        served = self.recorded.serves(batch)
        found = (self.recorded.forward if served else self.forward)(batch)
        assert torch.equal(expected, found)
        assert self.counter.calls - before == plain_calls
        for kind in ("conv", "ssm"):
            mine, other = getattr(self.pool, kind)[:, slots], getattr(self.plain, kind)[:, slots]
            assert torch.equal(mine, other)
        for slot in slots:
            starts[slot] += tokens
        return served

    def forward(self, batch):
        return self.model.forward(batch, self.pool)

    def check_all(self):
        starts = dict.fromkeys(range(SLOTS), 0)
        assert not self.check([0, 1], starts, tokens=4)
        return [self.check(slots, starts) for slots in STEPS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("family", STACKS)
def test_repeated_steps_are_plain_steps(family, dtype):
    rank = Rank(family, SingleRank(), dtype)
    with torch.inference_mode():
        assert all(rank.check_all())
    assert not rank.recorded.refused
    assert sorted(rank.recorded._steps) == [1, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("family", [*STACKS, "mamba2, one group"])
def test_sums_over_shared_memory_are_repeated_too(family, dtype):
    @torch.inference_mode()
    def run(collectives):
        rank = Rank(family, collectives, dtype)
        assert all(rank.check_all())
        return rank.recorded.refused, sorted(rank.recorded._steps)

    assert on_ranks(2, run) == [("", [1, 3])] * 2


@torch.inference_mode()
def test_sums_that_cannot_be_repeated_are_not():
    def run(_, collectives):
        rank = Rank("mamba", collectives)
        return rank.check_all(), rank.recorded.refused

    for served, refused in run_ranks(2, run):  # these ranks add with torch
        assert served == [True] + [False] * (len(STEPS) - 1)  # the first one was tried
        assert "torch's operator" in refused


def multiply(result):
    return result * 1


def sum_alone(result):
    parts = [result.data_ptr()]
    _native.rank_sum(parts, result.data_ptr(), result.numel(), 0)
    return result


@torch.inference_mode()
@pytest.mark.parametrize(
    ("also", "reason"), [(multiply, "aten.mul"), (sum_alone, "rank_sum")], ids=["torch", "native"]
)
def test_what_a_recording_would_miss_spoils_it(also, reason):
    rank = Rank("mamba", SingleRank())
    starts = dict.fromkeys(range(SLOTS), 0)
    plain = rank.model.mixers[1]
    rank.model.mixers[1] = lambda *args: also(plain(*args))
    assert rank.check([1], starts)
    assert reason in rank.recorded.refused
    assert not rank.check([1], starts)


FIRST_STEP = """
import sys
from sidewinder import LLM, SamplingParams
with LLM(sys.argv[1], device="cpu", threads=1, load_format="random") as llm:
    llm.generate([[1, 2]], SamplingParams(max_tokens=3))
    assert list(llm._executor._runner._recorded._steps) == [1]
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def test_a_first_recording_does_not_import_torchs_compiler():
    """That takes a second or two, which the first request would wait for."""
    model = Path(__file__).parents[3] / "models" / "mamba"
    command = [sys.executable, "-c", FIRST_STEP, str(model)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"


@torch.inference_mode()
def test_who_is_served():
    rank = Rank("mamba", SingleRank())
    many = [[1]] * (LARGEST_BATCH + 1)
    assert rank.recorded.serves(pack(many[:-1], list(range(LARGEST_BATCH))))
    assert not rank.recorded.serves(pack(many, list(range(LARGEST_BATCH + 1))))
    assert not rank.recorded.serves(pack([[1], [1, 2]], [0, 1]))
    with dispatch.forced("torch"):
        assert not rank.recorded.serves(pack([[1]], [0]))
    assert isinstance(recorded_steps("auto", rank.model, rank.pool, rank.counter), RecordedSteps)
    assert recorded_steps("off", rank.model, rank.pool, rank.counter) is None


def test_a_missing_rank_is_named():
    """The other rank ends after its first step; ours meets nobody in its second, a repeated one."""

    @torch.inference_mode()
    def run(collectives):
        rank = Rank("mamba", collectives)
        for start in range(2 if collectives.tp.rank == 0 else 1):
            batch = pack([[1 + start]], [0], [start])
            try:
                rank.recorded.forward(batch)
            except RankFailure as error:
                return str(error)
        return ""

    failure, other = on_ranks(2, run, timeout_s=0.5)
    assert other == ""
    assert "rank 0 of 2" in failure
    assert "shared memory failed" in failure


def test_a_recording_is_complete_or_not_used():
    x, y = torch.ones(1, 4), torch.empty(1, 4)
    recording = native.new_recording()
    recording.begin()
    with pytest.raises(ValueError, match="recording already"):
        native.new_recording().begin()
    _native.rms_norm(x, None, 0.0, None, y, None)
    recording.end()
    _native.rms_norm(x, None, 0.0, None, torch.empty(1, 4), None)
    assert len(recording) == 1
    x[0, 0], before = 7, y.clone()
    recording.replay()
    assert not torch.equal(y, before)
    assert torch.equal(y, x * torch.rsqrt(x.square().mean()))
    recording.spoil("a good reason")
    with pytest.raises(ValueError, match="a good reason"):
        recording.replay()
