"""Steps that are repeated from a recording give the bits of steps that run from Python."""

import subprocess
import sys
from pathlib import Path

import pytest
import recorded_cases
import torch
from recorded_cases import SLOTS, STEPS, Rank
from shared_memory_cases import on_ranks

from sidewinder.collectives.base import SingleRank
from sidewinder.engine.recorded import LARGEST_BATCH, RecordedSteps, recorded_steps
from sidewinder.ops import dispatch, native, native_linear
from sidewinder.parallel.errors import RankFailure
from sidewinder.state.batch import pack
from sidewinder.testing import run_ranks

if not native.is_available():
    pytest.skip("built without the native module", allow_module_level=True)

from sidewinder import _native

STACKS = ("mamba", "falcon_mamba", "mamba2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("family", STACKS)
def test_repeated_steps_are_plain_steps(family, dtype):
    rank = Rank(family, SingleRank(), dtype)
    with torch.inference_mode():
        assert all(rank.check_all())
    assert not rank.recorded.refused
    assert sorted(rank.recorded._steps) == [(1, 0), (3, 0)]


@pytest.mark.parametrize("weight_dtype", ["int8", "int4"])
@pytest.mark.parametrize("family", STACKS)
def test_steps_with_rounded_weights_are_repeated_too(family, weight_dtype):
    rank = Rank(family, SingleRank(), torch.bfloat16, weight_dtype)
    with torch.inference_mode():
        assert all(rank.check_all())
    assert sorted(rank.recorded._steps) == [(1, 0), (3, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("family", [*STACKS, "mamba2, one group"])
def test_sums_over_shared_memory_are_repeated_too(family, dtype):
    @torch.inference_mode()
    def run(collectives):
        rank = Rank(family, collectives, dtype)
        assert all(rank.check_all())
        return rank.recorded.refused, sorted(rank.recorded._steps)

    assert on_ranks(2, run) == [("", [(1, 0), (3, 0)])] * 2


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
    assert list(llm._executor._runner._recorded._steps) == [(1, 0)]
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


@torch.inference_mode()
def test_a_large_batch_of_narrow_vectors_leaves_the_others_recorded(monkeypatch):
    """Without wide vectors torch multiplies float32 from some rows on, which is not repeated."""
    monkeypatch.setattr(native_linear, "_is_portable", lambda: True)
    monkeypatch.setattr(recorded_cases, "SLOTS", native_linear.SMALL_ROWS + 1)
    rank, starts = (
        Rank("mamba2", SingleRank()),
        dict.fromkeys(range(native_linear.SMALL_ROWS + 1), 0),
    )
    batches = [0], list(starts), [0], list(starts)[1:]
    assert [rank.check(slots, starts) for slots in batches] == [True, False, True, True]
    assert not rank.recorded.refused


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
