"""Launching Triton kernels: on a GPU, under Triton's interpreter on a CPU, or only recording them.

Kernels take tensors, plain numbers and compile-time constants. Nothing here waits for the device,
so what is launched can be captured in a CUDA graph.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from threading import Lock, local
from typing import Any

import torch

from sidewinder.state.batch import Sequences

OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion", "launch_pdl")
"""Keyword arguments of `launch` that are not the kernel's: how it is compiled."""

EARLY_VARIABLE = "SIDEWINDER_EARLY_LAUNCH"
"""On Hopper and later GPUs a decode step's kernels start while those before them end; 0 stops that.
1 also lets launches that are recorded for no GPU in particular start so."""

EARLY_CAPABILITY = 90
"""Hopper's."""


@dataclass(frozen=True)
class Target:
    """A GPU that launches are recorded for, as far as they depend on it.

    Attributes:
        capability: NVIDIA's compute capability, times ten.
        multiprocessors: how many it has.
    """

    capability: int
    multiprocessors: int


TYPICAL_MULTIPROCESSORS = 132
"""An H100's."""

SHARED_BYTES = 96 << 10
"""Of a program, for tiles; workstation cards have 3 KiB more."""


@dataclass(frozen=True)
class Launch:
    """One launch, as recorded.

    Attributes:
        kernel: what `triton.jit` made.
        grid: programs along each axis.
        arguments: tensors and numbers, in the kernel's order.
        constants: compile-time constants by name.
        options: how to compile; see `OPTIONS`.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: Mapping[str, Any]
    options: Mapping[str, Any]


def is_installed() -> bool:
    """Whether Triton can be imported."""
    return find_spec("triton") is not None


def is_interpreting() -> bool:
    """Whether kernels run in Triton's interpreter (`TRITON_INTERPRET=1`), on CPU tensors too."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def serves_any_device() -> bool:
    """Whether kernels take tensors of any device: interpreted, or only recorded."""
    return is_interpreting() or _records is not None


def early() -> dict[str, bool]:
    """Arguments of `launch` for kernels that call `triton_math.wait_for_inputs`: whether they may
    start before the kernel before them has ended (programmatic dependent launch)."""
    return {"EARLY": True, "launch_pdl": True} if _starts_early() else {"EARLY": False}


def early_in_slots() -> dict[str, bool]:
    """`early` for kernels that read slots before they wait; only inside `slots_at_rest`."""
    return early() if getattr(_here, "slots_at_rest", False) else {"EARLY": False}


@contextmanager
def slots_at_rest() -> Iterator[None]:
    """Inside, nothing that can still be running writes what an operator finds in its slots.

    True of a model's layers: each slot of a layer is updated once, and since the step before, a
    kernel was launched ordinarily (the embedding), which waits for all before it and lets nothing
    start early. Which slots there are was written before it, too.
    """
    before = getattr(_here, "slots_at_rest", False)
    _here.slots_at_rest = True
    try:
        yield
    finally:
        _here.slots_at_rest = before


def _starts_early() -> bool:
    setting = os.environ.get(EARLY_VARIABLE)
    if is_interpreting():
        return False
    if _records is not None and _target is None:
        return setting == "1"
    return setting != "0" and _capability() >= EARLY_CAPABILITY


def _capability() -> int:
    """Of the GPU that launches are for; 0 without one."""
    return (_target or _gpu_here()).capability


def multiprocessors() -> int:
    """Of the GPU that launches are for; an H100's where there is none."""
    return (_target or _gpu_here()).multiprocessors


@cache
def _gpu_here() -> Target:
    """The current GPU; without one a capability of 0, and as many multiprocessors as an H100."""
    if not torch.cuda.is_available():
        return Target(capability=0, multiprocessors=TYPICAL_MULTIPROCESSORS)
    major, minor = torch.cuda.get_device_capability()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Target(10 * major + minor, int(properties.multi_processor_count))


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Start `kernel` on `grid`; `constants` also holds the options of `OPTIONS`.

    A grid without programs does nothing. Only the first axis may exceed 65535 programs.
    """
    if 0 in grid:
        return
    constants.setdefault("enable_fp_fusion", True)  # said, because Triton's default changes
    if _records is not None:
        options = {name: constants.pop(name) for name in OPTIONS if name in constants}
        _records.append(Launch(kernel, grid, arguments, constants, options))
    elif is_interpreting():
        # The interpreter replaces parts of triton.language while a kernel runs.
        with _one_at_a_time:
            kernel[grid](*arguments, **constants)
    else:
        settle_key(kernel)
        kernel[grid](*arguments, **constants)


def settle_key(kernel: Any) -> None:
    """Make a kernel's place in Triton's cache on disk the same in every process.

    In Triton 3.6 it depends on which of the functions that the kernel calls have been hashed
    before: processes that launch kernels in another order would compile them again. So they are
    hashed first, those that call others last.
    """
    function = kernel.fn
    if function in _settled:  # Not by the kernel, whose hash is its key.
        return
    _settled.add(function)
    for name in function.__code__.co_names:
        called = function.__globals__.get(name)
        if isinstance(called, type(kernel)):
            settle_key(called)
    kernel.cache_key  # noqa: B018 computed once, and kept


@contextmanager
def recording(target: Target | None = None) -> Iterator[list[Launch]]:
    """Inside the `with` block nothing is launched; the launches are put into the list instead.

    For compiling kernels ahead of time, without a GPU: outputs are left as they are, and tensors
    need no memory (`device="meta"`).

    Args:
        target: the GPU that launches are for; by default the one here, with kernels that wait.
    """
    global _records, _target
    assert _records is None, "already recording"
    records = _records = list[Launch]()
    _target = target
    try:
        yield records
    finally:
        _records = _target = None


def power_of_two(n: int, least: int = 1, most: int = 1 << 30) -> int:
    """The smallest power of two that is at least `n`, within `least` and `most`."""
    return min(max(least, 1 << max(n - 1, 0).bit_length()), most)


def chunks_bound(seqs: Sequences, chunk: int) -> int:
    """At least as many chunks as the sequences of more than one token have, cut each on its own.

    From sizes known on the host, so that a launch waits for nothing; programs without a chunk end.
    """
    return seqs.n_tokens // chunk + seqs.n_seqs - seqs.n_decodes


def single_places(seqs: Sequences) -> tuple[torch.Tensor, ...]:
    """Where the states of leading single tokens are, as their kernels take it: the chains that they
    are in, if they are (`chain_kernels.py` then), slots, and which count."""
    chains = () if seqs.chains is None else (seqs.chains,)
    return *chains, seqs.slots, seqs.fresh.view(torch.uint8)


def stages_that_fit(wanted: int, stage_bytes: int) -> int:
    """How many tiles of so many bytes may be on their way in a loop, beside one that is multiplied
    before it: what workstation cards' shared memory holds at most, but two."""
    return min(wanted, max(2, SHARED_BYTES // stage_bytes - 1))


def blocks(n: int, block: int) -> int:
    """How many blocks cover n."""
    return -(-n // block)


_records: list[Launch] | None = None
_target: Target | None = None
_one_at_a_time = Lock()
_settled: set[Any] = set()
_here = local()
"""Of this thread: ranks may be threads."""
