"""From an `EngineConfig` to ranks that run: the one place that chooses how they start."""

import functools
import itertools
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch

from sidewinder.collectives import shared_memory
from sidewinder.collectives.base import Collectives, SingleRank
from sidewinder.config import EngineConfig, ModelConfig
from sidewinder.parallel.cores import advise_on_nodes, threads_per_rank, use_threads
from sidewinder.parallel.devices import resolve_device, resolve_dtype
from sidewinder.parallel.executor import Executor, InlineExecutor, resolve_target
from sidewinder.parallel.forks import own_threads
from sidewinder.parallel.gpu_group import gpu_transport
from sidewinder.parallel.process_executor import ProcessExecutor
from sidewinder.parallel.protocol import Transport
from sidewinder.parallel.torchrun import TorchrunPlace, join_torchrun

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
        RuntimeError: in a fork of a process that computed, for ranks in this process.
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
        transport=choose_transport(device, os.environ, engine.tp),
        threads=engine.threads,
        timeout_s=engine.timeout_s,
    )


def choose_transport(
    device: torch.device, environment: Mapping[str, str], ranks: int = 1
) -> Transport:
    """The fastest exact transport between `ranks` worker processes on this machine.

    Raises:
        ValueError: as of `forced_transport`; for more ranks than the transport serves.
    """
    forced = forced_transport(environment)
    if device.type == "cuda":
        return gpu_transport(forced, ranks)
    if forced == "nccl":
        raise ValueError("SIDEWINDER_TRANSPORT=nccl serves GPUs; use device='cuda', or set gloo")
    if shared_memory.native is None:
        if forced is None:
            _say_gloo()
        return "gloo"
    if forced != "gloo" and ranks > shared_memory.MOST_RANKS:
        raise ValueError(
            f"tp={ranks}: {forced or 'shared memory'} joins at most {shared_memory.MOST_RANKS} "
            "ranks; use a smaller tp (a rank can have several threads)"
        )
    return forced or "shared memory"


def forced_transport(environment: Mapping[str, str]) -> Transport | None:
    """What `SIDEWINDER_TRANSPORT` makes ranks use, to compare transports; None if not set.

    Raises:
        ValueError: if it is none of gloo, tcp (CPU ranks) and nccl (GPUs without symmetric memory).
    """
    forced = environment.get("SIDEWINDER_TRANSPORT", "")
    if forced not in ("", "gloo", "tcp", "nccl"):
        raise ValueError(
            f"SIDEWINDER_TRANSPORT={forced!r} is unknown; set gloo, tcp, nccl or nothing"
        )
    transports: dict[str, Transport] = {"gloo": "gloo", "tcp": "tcp", "nccl": "nccl"}
    return transports.get(forced)


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
    threads = threads_per_rank(engine.threads, ranks)
    if device.type == "cpu":
        advise_on_nodes(ranks, threads)
    return replace(
        engine,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        threads=threads,
    )


def _start_inline(
    engine: EngineConfig,
    model: ModelConfig,
    target: str,
    collectives: Collectives,
    device: torch.device,
) -> InlineExecutor:
    assert engine.threads is not None
    own_threads(engine.threads)
    use_threads(engine.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        runner = resolve_target(target)(engine, model, collectives.tp, collectives)
    except BaseException:
        collectives.close()
        raise
    return InlineExecutor(runner, collectives, engine.threads)


def _start_in_torchrun(engine: EngineConfig, model: ModelConfig, target: str) -> InlineExecutor:
    place = TorchrunPlace.read(os.environ, engine.tp)
    device = resolve_device(engine.device, place.local_rank, place.local_size)
    engine = _resolved(engine, model, device, place.local_size)
    assert engine.threads is not None
    own_threads(engine.threads)  # Before anything is shared that would have to be closed.
    forced = forced_transport(os.environ)
    # Every rank launches the same executors in the same order, so the count names the group.
    name = f"sidewinder-{next(_launches)}"
    collectives = join_torchrun(place, device, forced, engine.timeout_s, name)
    return _start_inline(engine, model, target, collectives, device)
