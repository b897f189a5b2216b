"""What needs no rank: one process, and what is refused before anything starts."""

from types import SimpleNamespace

import pytest
import torch

from sidewinder.collectives import shared_memory
from sidewinder.config import EngineConfig
from sidewinder.parallel import launch
from sidewinder.parallel.executor import InlineExecutor, resolve_target
from sidewinder.parallel.group import SINGLE
from sidewinder.parallel.launch import choose_transport, start_executor

MODEL = SimpleNamespace(dtype="float16")


class Recorder:
    def __init__(self, *given: object) -> None:
        self.given = given

    def get(self) -> tuple[object, ...]:
        return self.given


def refuse(*_: object) -> None:
    raise ValueError("no weights")


def engine(**values: object) -> EngineConfig:
    return EngineConfig(model="none", **{"device": "cpu", **values})


def test_one_rank_runs_in_this_process_with_settings_resolved():
    threads = torch.get_num_threads()
    executor = start_executor(engine(dtype="float32", threads=1), MODEL, f"{__name__}:Recorder")
    resolved, model, tp, collectives = executor.call("get")
    assert isinstance(executor, InlineExecutor)
    assert (resolved.device, resolved.dtype, resolved.threads) == ("cpu", "float32", 1)
    assert (model, tp, collectives.path) == (MODEL, SINGLE, "none")
    executor.close()
    executor.close()
    with pytest.raises(RuntimeError, match="the executor is closed"):
        executor.call("get")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_forks_of_a_process_that_computed_on_several_threads_are_refused(monkeypatch, threads):
    monkeypatch.setattr("sidewinder.parallel.forks._owner", None)
    before, target = torch.get_num_threads(), f"{__name__}:Recorder"
    executor = start_executor(engine(dtype="float32", threads=threads), MODEL, target)
    monkeypatch.setattr("os.getpid", lambda: 1)
    if threads == 1:
        assert executor.call("get")
    else:
        with pytest.raises(RuntimeError, match=r"process 1 is a fork of .*spawn"):
            executor.call("get")
        with pytest.raises(RuntimeError, match="threads=1"):
            start_executor(engine(dtype="float32", threads=2), MODEL, target)
    start_executor(engine(dtype="float32", threads=1), MODEL, target).close()
    executor.close()
    torch.set_num_threads(before)


def test_error_of_the_target_travels():
    with pytest.raises(ValueError, match="no weights"):
        start_executor(engine(dtype="float32", threads=1), MODEL, f"{__name__}:refuse")


def test_torchrun_is_not_guessed_and_not_assumed(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="launch='torchrun' needs torchrun's variables"):
        start_executor(engine(tp=2, launch="torchrun"), MODEL)


def test_unknown_target():
    with pytest.raises(AttributeError):
        resolve_target(f"{__name__}:absent")


@pytest.mark.parametrize(
    ("device", "forced", "expected"),
    [
        ("cuda", "", "symmetric memory"),
        ("cuda", "nccl", "nccl"),
        ("cpu", "", "shared memory"),
        ("cpu", "gloo", "gloo"),
    ],
)
def test_transport(monkeypatch, device, forced, expected):
    monkeypatch.setattr(shared_memory, "native", object())
    environment = {"SIDEWINDER_TRANSPORT": forced}
    assert choose_transport(torch.device(device), environment) == expected


def test_without_the_native_module_gloo_is_used_and_said(monkeypatch):
    monkeypatch.setattr(shared_memory, "native", None)
    launch._say_gloo.cache_clear()
    with pytest.warns(UserWarning, match="ranks talk over gloo, much slower than shared memory"):
        assert choose_transport(torch.device("cpu"), {}) == "gloo"


@pytest.mark.parametrize("environment", [{}, {"SIDEWINDER_TRANSPORT": "tcp"}])
def test_more_ranks_than_native_sums_take_are_refused_before_they_start(monkeypatch, environment):
    monkeypatch.setattr(shared_memory, "native", object())
    choose_transport(torch.device("cpu"), environment, 64)
    with pytest.raises(ValueError, match=r"tp=65: .* at most 64 ranks; use a smaller tp"):
        choose_transport(torch.device("cpu"), environment, 65)
    assert choose_transport(torch.device("cpu"), {"SIDEWINDER_TRANSPORT": "gloo"}, 65) == "gloo"


def test_nccl_is_not_for_cpus():
    with pytest.raises(ValueError, match="SIDEWINDER_TRANSPORT=nccl serves GPUs"):
        choose_transport(torch.device("cpu"), {"SIDEWINDER_TRANSPORT": "nccl"})


def test_unknown_transport():
    with pytest.raises(ValueError, match="SIDEWINDER_TRANSPORT='mpi' is unknown; set gloo"):
        choose_transport(torch.device("cpu"), {"SIDEWINDER_TRANSPORT": "mpi"})
