"""Block sizes of the Triton kernels: defaults, or what was measured on this GPU.

Measuring happens only inside `measuring()` (`tools/gpu_suite.py` does it once for a GPU): every
kernel that is then called with sizes that the table lacks is timed with each of its candidates, and
the fastest is written to a small JSON file, which later processes read: `SIDEWINDER_TUNING`, by
default `~/.cache/sidewinder/tuning.json`. Without it, and under Triton's interpreter, the first
candidate of each kernel is used; so it is where the file holds sizes that are no candidate (any
more).
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

ENVIRONMENT_VARIABLE = "SIDEWINDER_TUNING"
REPEATS = 15
LONG_MS, REPEATS_OF_LONG = 2.0, 5
"""Of what takes so many milliseconds a few replays say enough."""
FLUSH_BYTES = 128 << 20
"""Written before each run that is timed: more than any second-level cache holds."""

Config = Mapping[str, int]
"""Block sizes and compile options of one kernel, by name."""


def choose(
    kernel: str,
    sizes: tuple[object, ...],
    candidates: Sequence[Config],
    run: Callable[[Config], object],
    in_place: Sequence[Tensor] = (),
) -> Config:
    """The configuration to use.

    Args:
        kernel: its name; another one once it has changed much, or tables would go on naming what
            its older self was tuned to.
        sizes: what the best choice depends on; number of tokens as `bucket`.
        candidates: the first is the default.
        run: launches the kernel with a configuration; called only while measuring.
        in_place: tensors that `run` changes; they are put back after each of its calls.
    """
    if kernel in _overrides:
        return {**candidates[0], **_overrides[kernel]}
    if _trials:
        return candidates[_trials[-1]]
    if not _measuring and not table():
        return candidates[0]
    key = f"{_gpu()}|{kernel}|{'x'.join(map(str, sizes))}"
    found = table().get(key)
    if found not in candidates:  # Nothing, or what another version of the kernel took.
        found = None
    if found is None and _measuring and not torch.cuda.is_current_stream_capturing():
        found = _fastest(candidates, run, in_place)
        if found is not None:
            _keep(key, found)
    return candidates[0] if found is None else found


def bucket(n: int) -> int:
    """`n` rounded up to a power of two, so that few sizes need measuring."""
    return 1 << max(n - 1, 0).bit_length()


def was_measured(kernel: str) -> bool:
    """Whether the table has block sizes of a kernel for this GPU."""
    return bool(table()) and any(key.startswith(f"{_gpu()}|{kernel}|") for key in table())


@contextmanager
def measuring() -> Iterator[None]:
    """Time candidates of kernels whose sizes the table lacks; needs a GPU, and waits for it."""
    global _measuring
    _measuring = True
    try:
        yield
    finally:
        _measuring = False


@contextmanager
def overridden(kernel: str, **config: int) -> Iterator[None]:
    """Use these block sizes for `kernel` whatever the table says (tests, experiments)."""
    assert kernel not in _overrides, "overridden already"
    _overrides[kernel] = config
    try:
        yield
    finally:
        del _overrides[kernel]


@contextmanager
def gpu_named(product: str) -> Iterator[None]:
    """Use what the table says of this GPU, whichever is here."""
    global _product
    _product = product
    try:
        yield
    finally:
        _product = None


def products() -> set[str]:
    """The GPUs that the table has block sizes for, as their driver names them."""
    return {key.split("|")[0] for key in table()}


@contextmanager
def candidate(index: int) -> Iterator[None]:
    """Use candidate `index` of every kernel, to compile all; IndexError from one that has fewer."""
    _trials.append(index)
    try:
        yield
    finally:
        _trials.pop()


def path() -> Path:
    """The file that keeps what was measured."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "sidewinder" / "tuning.json"


@cache
def table() -> dict[str, Config]:
    """What was measured, by GPU, kernel and sizes; read once.

    Raises:
        ValueError: if the file is not a JSON object.
    """
    file = path()
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}); delete it to use the defaults") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} does not hold a JSON object; delete it to use the defaults")
    return content


def _fastest(
    candidates: Sequence[Config], run: Callable[[Config], object], in_place: Sequence[Tensor]
) -> Config | None:
    """None if no candidate can run: the table says which kernels have."""
    times = [_time(run, config, in_place) for config in candidates]
    best = min(times)
    return candidates[times.index(best)] if best < math.inf else None


def _keep(key: str, config: Config) -> None:
    """Write the table with one more entry; several ranks may do so at once."""
    table()[key] = config
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(table(), indent=1, sort_keys=True))
    partial.replace(file)


def _time(run: Callable[[Config], object], config: Config, in_place: Sequence[Tensor]) -> float:
    """Milliseconds of the median of some replays of a graph of `run`; infinite if it fails.

    In a graph launches cost nothing, as in a decode step, and each run finds cold caches.
    """
    saved = [tensor.clone() for tensor in in_place]
    flushed = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    try:
        run(config)  # Compiles.
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            flushed.zero_()
            run(config)
        repeats = REPEATS if _replay(graph) < LONG_MS else REPEATS_OF_LONG
        times = sorted(_replay(graph) for _ in range(repeats))
    except Exception as error:  # Whatever a compiler or driver raises: this one cannot be used.
        warnings.warn(f"{dict(config)} cannot run: {error}", stacklevel=2)
        return math.inf
    finally:
        for tensor, before in zip(in_place, saved, strict=True):
            tensor.copy_(before)
    return times[repeats // 2]


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    start, stop = _event(), _event()
    start.record()
    graph.replay()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _gpu() -> str:
    return _gpu_here() if _product is None else _product


@cache
def _gpu_here() -> str:
    return torch.cuda.get_device_name()


_measuring = False
_product: str | None = None
_overrides: dict[str, Config] = {}
_trials: list[int] = []
