"""From an `EngineConfig` to ranks that run: the one place that chooses how they start."""

import functools
import itertools
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

import torch

from sidewinder.collectives import shared_memory
from sidewinder.collectives.base import Collectives, SingleRank
from sidewinder.collectives.distributed import TorchCollectives, c10d
from sidewinder.config import EngineConfig, ModelConfig
from sidewinder.parallel.cores import threads_per_rank, use_threads
from sidewinder.parallel.devices import resolve_device, resolve_dtype
from sidewinder.parallel.errors import RankFailure
from sidewinder.parallel.executor import Executor, InlineExecutor, resolve_target
from sidewinder.parallel.group import TensorParallel
from sidewinder.parallel.process_executor import ProcessExecutor
from sidewinder.parallel.protocol import Transport

RUNNER = "sidewinder.engine.runner:build_runner"

_launches = itertools.count()


def start_executor(engine: EngineConfig, model: ModelConfig, target: str = RUNNER) -> Executor:
    """Start the ranks that `engine` asks for, each with a runner that `target` builds.

    The target gets `engine` with `device` ("cpu" or "cuda", this rank's GPU being the current one),
    `dtype` and `threads` resolved.

    Args:
        engine: `tp`, `device`, `dtype`, `threads`, `launch` and `timeout_s` are used here.
        model: its `dtype` is what `dtype="auto"` means.
        target: "module:function", `(engine, model, tp, collectives) -> runner`.

    Raises:
        ValueError: if the device cannot be had, or torchrun's variables do not fit.
        RankFailure: if a rank fails while it starts.
    """
    if engine.launch == "torchrun":
        return _start_in_torchrun(engine, model, target)
    device = resolve_device(engine.device, 0, engine.tp)
    engine = _resolved(engine, model, device, engine.tp)
    if engine.tp == 1:
        return _start_inline(engine, model, target, SingleRank(), device)
    assert engine.threads is not None
    return ProcessExecutor(
        engine.tp,
        target,
        engine,
        model,
        device=device.type,
        transport=choose_transport(device, os.environ),
        threads=engine.threads,
        timeout_s=engine.timeout_s,
    )


def choose_transport(device: torch.device, environment: Mapping[str, str]) -> Transport:
    """The fastest exact transport between worker processes on this machine.

    `SIDEWINDER_TRANSPORT=gloo` keeps CPU ranks off shared memory, to compare the two.

    Raises:
        ValueError: if that variable is anything else.
    """
    forced = environment.get("SIDEWINDER_TRANSPORT", "")
    if forced not in ("", "gloo"):
        raise ValueError(f"SIDEWINDER_TRANSPORT={forced!r} is unknown; set gloo, or nothing")
    if device.type == "cuda":
        return "nccl"
    if forced == "gloo":
        return "gloo"
    if shared_memory.native is None:
        _say_gloo()
        return "gloo"
    return "shared memory"


@functools.cache
def _say_gloo() -> None:
    warnings.warn(
        "the native module is not built: ranks talk over gloo, much slower than shared memory",
        stacklevel=4,
    )


def _resolved(
    engine: EngineConfig, model: ModelConfig, device: torch.device, ranks: int
) -> EngineConfig:
    dtype = resolve_dtype(engine.dtype, model.dtype, device)
    return replace(
        engine,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        threads=threads_per_rank(engine.threads, ranks),
    )


def _start_inline(
    engine: EngineConfig,
    model: ModelConfig,
    target: str,
    collectives: Collectives,
    device: torch.device,
) -> InlineExecutor:
    assert engine.threads is not None
    use_threads(engine.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        runner = resolve_target(target)(engine, model, collectives.tp, collectives)
    except BaseException:
        collectives.close()
        raise
    return InlineExecutor(runner, collectives)


@dataclass(frozen=True)
class TorchrunPlace:
    """This process's place in a torchrun job."""

    tp: TensorParallel
    local_rank: int
    local_size: int

    @staticmethod
    def read(environment: Mapping[str, str], tp: int) -> "TorchrunPlace":
        """From torchrun's variables.

        Raises:
            ValueError: if they are absent or malformed, or the world is not of `tp` ranks.
        """
        wanted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        absent = [
            name for name in (*wanted, "MASTER_ADDR", "MASTER_PORT") if name not in environment
        ]
        if absent:
            raise ValueError(
                f"launch='torchrun' needs torchrun's variables and {', '.join(absent)} is not set; "
                f"start with: torchrun --nproc-per-node {tp} script.py"
            )
        rank, size, local_rank, local_size = (int(environment[name]) for name in wanted)
        if size != tp:
            raise ValueError(f"tp={tp}, but torchrun started {size} ranks; make them equal")
        return TorchrunPlace(TensorParallel(rank, size), local_rank, local_size)


def _start_in_torchrun(engine: EngineConfig, model: ModelConfig, target: str) -> InlineExecutor:
    place = TorchrunPlace.read(os.environ, engine.tp)
    device = resolve_device(engine.device, place.local_rank, place.local_size)
    engine = _resolved(engine, model, device, place.local_size)
    return _start_inline(engine, model, target, _join_torchrun(place, engine, device), device)


def _join_torchrun(place: TorchrunPlace, engine: EngineConfig, device: torch.device) -> Collectives:
    # Every rank launches the same executors in the same order, so the count names the group.
    name = f"sidewinder-{next(_launches)}"
    if place.tp.size == 1:
        return SingleRank(place.tp)
    try:
        store, _, _ = next(c10d.rendezvous("env://", timeout=timedelta(seconds=engine.timeout_s)))
    except RuntimeError as error:
        raise RankFailure(f"rank {place.tp.rank} found no rendezvous ({error})") from error
    loopback = place.local_size == place.tp.size
    return TorchCollectives(place.tp, store, device, engine.timeout_s, loopback, name)
