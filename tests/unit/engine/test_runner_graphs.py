"""The runner gives the same answers with decode steps of fixed shape as with plain ones."""

from unittest.mock import MagicMock, call

import pytest
import torch
from full_recorder import FullRecorder

from sidewinder.collectives.base import SingleRank
from sidewinder.config import EngineConfig
from sidewinder.engine import recorders
from sidewinder.engine import runner as runner_module
from sidewinder.engine.plan import Admission, SequenceStep, StepPlan
from sidewinder.engine.recorders import CudaRecorder, EagerRecorder, recorder_for
from sidewinder.engine.runner import build_runner
from sidewinder.ops import dispatch
from sidewinder.ops.dispatch import forced
from sidewinder.parallel.group import SINGLE
from sidewinder.sampling import SamplingParams
from sidewinder.testing import TINY, run_ranks, tiny_config

PROMPTS = {1: (5, 80, 12), 0: (7, 9)}


def answers(family, collectives):
    """Tokens and logprobs of a prefill and three decode steps; collectives of one of these."""
    engine = EngineConfig(
        "random", device="cpu", dtype="float32", threads=1, max_batch_size=4, kv_cache_tokens=96,
        load_format="random", tp=collectives.tp.size,
    )  # fmt: skip
    runner = build_runner(engine, tiny_config(family), collectives.tp, collectives)
    kv, found = runner.pool.kv, []
    params = SamplingParams(temperature=0.8, logprobs=2)
    admissions = tuple(Admission(slot, params, slot, ()) for slot in PROMPTS)
    tokens, starts = dict(PROMPTS), dict.fromkeys(PROMPTS, 0)
    for _ in range(4):
        parts = tuple(
            SequenceStep(
                slot, tuple(tokens[slot]), starts[slot], (slot,) if kv else (), sample=True
            )
            for slot in PROMPTS
        )
        results = runner.step(StepPlan(parts, admissions)).sequences
        admissions = ()
        for slot, result in zip(PROMPTS, results, strict=True):
            starts[slot] += len(tokens[slot])
            tokens[slot] = tuple(result.tokens)
        found.append([(result.tokens, result.logprobs) for result in results])
    return found, runner.report().collectives_per_step


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", TINY)
def test_same_answers(family, tp, monkeypatch):
    plain = run_ranks(tp, lambda _, collectives: answers(family, collectives))
    monkeypatch.setattr(runner_module, "recorder_for", lambda *_: EagerRecorder())
    graphed = run_ranks(tp, lambda _, collectives: answers(family, collectives))
    for (expected, _), (found, calls) in zip(plain, graphed, strict=True):
        assert calls > 0 or tp == 1
        for some, others in zip(expected, found, strict=True):
            assert [tokens for tokens, _ in some] == [tokens for tokens, _ in others]
            for (_, ours), (_, theirs) in zip(some, others, strict=True):
                for one, other in zip(ours, theirs, strict=True):
                    assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_ranks_that_would_have_to_agree_end_without_memory(monkeypatch):
    monkeypatch.setattr(runner_module, "recorder_for", lambda *_: FullRecorder())
    with pytest.raises(RuntimeError, match=r"a decode step.*cannot be recorded.*cuda_graphs='off'"):
        run_ranks(2, lambda _, collectives: answers("mamba", collectives))


def test_graphs_need_a_gpu_a_transport_the_option_and_operators(monkeypatch):
    monkeypatch.setattr(recorders, "CudaRecorder", EagerRecorder)
    monkeypatch.setattr(dispatch, "is_installed", lambda: True)
    cuda, alone = torch.device("cuda"), SingleRank(SINGLE)
    assert recorder_for("auto", cuda, alone) is not None
    for backend in ("reference", "torch"):
        with forced(backend):
            assert recorder_for("auto", cuda, alone) is None, "they read numbers on the host"
    assert recorder_for("auto", torch.device("cpu"), alone) is None
    assert recorder_for("off", cuda, alone) is None

    def run(_, collectives):
        assert recorder_for("auto", cuda, collectives) is None, "threads wait on the host"

    run_ranks(2, run)


def test_all_recordings_warm_up_on_one_stream(monkeypatch):
    """torch keeps memory for cuBLAS for every stream that it has run on."""
    monkeypatch.setattr(recorders, "cuda", MagicMock())
    recorder, runs = CudaRecorder("cpu"), []
    for number in range(3):
        recorder.record(lambda number=number: runs.append(number))
    assert runs == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert recorders.cuda.Stream.call_count == 1


def test_a_recording_that_fails_leaves_the_callers_stream(monkeypatch):
    """torch leaves its own stream the current one then, and kernels under way use what we free."""
    monkeypatch.setattr(recorders, "cuda", MagicMock())
    recorder = CudaRecorder("cpu")
    before = recorders.cuda.current_stream()
    recorders.cuda.graph.side_effect = RuntimeError("the recording cannot be ended")
    recorders.cuda.reset_mock(side_effect=False)
    with pytest.raises(RuntimeError, match="cannot be ended"):
        recorder.record(lambda: None)
    assert recorders.cuda.mock_calls[-2:] == [call.set_stream(before), call.synchronize()]


def test_a_smallest_graph_comes_first_into_the_pool(monkeypatch):
    """torch takes no second graph into a pool whose first could not be recorded."""
    monkeypatch.setattr(recorders, "cuda", MagicMock())
    recorder = CudaRecorder("cpu")
    (first,) = recorders.cuda.graph.call_args_list
    recorder.record(lambda: None)
    second = recorders.cuda.graph.call_args_list[-1]
    assert first.kwargs["pool"] is second.kwargs["pool"] is recorders.cuda.graph_pool_handle()
