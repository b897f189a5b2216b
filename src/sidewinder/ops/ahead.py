"""Compiling recorded launches into Triton's cache on disk, for a GPU that need not be here.

A launch is compiled once per specialisation: the types of its arguments, which of them are 1 or
multiples of 16, and the compile-time constants. Processes with a stand-in for Triton's driver,
which only names the GPU, do what a launch does up to starting the kernel, so that keys and files in
the cache are those that a launch looks for. Nothing is loaded: the small C modules that start
kernels, which Triton builds and keeps too, are made on the GPU's machine.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidewinder.ops.launching import Launch, is_installed, is_interpreting, settle_key
from sidewinder.parallel.lifeline import die_with_parent

CACHE_VARIABLE = "TRITON_CACHE_DIR"
ALIGNMENT = 16
"""Triton compiles other kernels for addresses and integers that are multiples of it."""
NEITHER_ONE_NOR_ALIGNED, LARGE = 7, 1 << 40
"""Numbers that stand for all of their kind; large ones take 64 bits."""


@dataclass(frozen=True)
class Address:
    """What Triton looks at in a tensor."""

    dtype: torch.dtype
    aligned: bool

    def data_ptr(self) -> int:
        return 0 if self.aligned else self.dtype.itemsize

    @staticmethod
    def ptr_range() -> int:
        return 0


@dataclass(frozen=True)
class Specialisation:
    """All launches that run the same compiled kernel.

    Attributes:
        module, function: where the kernel is.
        arguments: `Address` for tensors; numbers that stand for others of their kind; None.
        constants: compile-time constants and options, by name.
    """

    module: str
    function: str
    arguments: tuple[object, ...]
    constants: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(launch: Launch) -> "Specialisation":
        """What is compiled for a launch."""
        function = launch.kernel.fn
        given = zip(launch.kernel.params, launch.arguments, strict=False)
        arguments = tuple(_kind(value, not each.do_not_specialize) for each, value in given)
        constants = {**launch.constants, **launch.options}
        return Specialisation(
            function.__module__, function.__name__, arguments, tuple(sorted(constants.items()))
        )


@dataclass(frozen=True)
class Compiled:
    """What became of a specialisation.

    Attributes:
        kernel: its function.
        found: whether it was in the cache already.
    """

    kernel: str
    found: bool


def check_compiler() -> None:
    """Raises ValueError where nothing can be compiled: without Triton, or in its interpreter."""
    if not is_installed():
        raise ValueError(
            "Triton is not installed, so nothing can be compiled; install the version that the "
            "GPU's machine has (pip install triton)"
        )
    if is_interpreting():
        raise ValueError("TRITON_INTERPRET=1 interprets kernels instead of compiling; unset it")


def cache_folder() -> Path:
    """Where Triton keeps compiled kernels by default."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path.home() / ".triton" / "cache"


def compile_all(
    wanted: Sequence[Specialisation], capability: int, cache: Path, processes: int
) -> Iterator[Compiled]:
    """Compile what `cache` lacks, in processes of their own; yields each as it is done.

    Args:
        wanted: what to compile.
        capability: of the GPU, times ten.
        cache: Triton's cache; made if it does not exist.
        processes: how many compile at once.

    Raises:
        ValueError: if kernels cannot be compiled here.
        RuntimeError: if some could not be; after all others.
    """
    check_compiler()
    cache.mkdir(parents=True, exist_ok=True)
    failures = []
    with ProcessPoolExecutor(
        processes, get_context("spawn"), _prepare, (capability, str(cache.resolve()))
    ) as pool:
        pending = {pool.submit(_compile, each): each for each in wanted}
        for done in as_completed(pending):
            if (error := done.exception()) is None:
                yield done.result()
            else:
                each = pending[done]
                text = str(error).strip().split("\n")[0] or type(error).__name__
                failures.append(f"{each.module}.{each.function}: {text}")
    if failures:
        raise RuntimeError(f"{len(failures)} kernels could not be compiled; {min(failures)}")


def unique(launches: Iterable[Launch]) -> dict[Specialisation, None]:
    """The specialisations of `launches`, in the order in which they first appear."""
    return dict.fromkeys(map(Specialisation.of, launches))


def _kind(value: object, specialised: bool) -> object:
    """What stands for `value` in a `Specialisation`."""
    if isinstance(value, Tensor):
        # Tensors begin where the allocator says, at multiples of more than 16 bytes, views behind.
        address = value.storage_offset() * value.itemsize
        return Address(value.dtype, address % ALIGNMENT == 0)
    if isinstance(value, float):
        return 0.5
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if specialised and value == 1:
        return 1
    aligned = specialised and value % ALIGNMENT == 0
    large = not -(2**31) <= value < 2**31
    return (ALIGNMENT if aligned else NEITHER_ONE_NOR_ALIGNED) + LARGE * large


class _Driver:
    """What Triton asks of a GPU's driver before it launches."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def _prepare(capability: int, cache: str) -> None:
    """Make this process one that compiles for `capability` into `cache`, and ends with its parent:
    a pool whose owner was killed would wait for work for ever."""
    die_with_parent()
    os.environ[CACHE_VARIABLE] = cache
    from triton.runtime.driver import driver

    driver.set_active(_Driver(capability))


def _compile(wanted: Specialisation) -> Compiled:
    """In a process of its own: as a launch does, but for the launch."""
    from triton import knobs

    kernel = getattr(import_module(wanted.module), wanted.function)
    settle_key(kernel)
    seen: list[bool] = []
    knobs.compilation.listener = partial(_note, seen)
    kernel.run(*wanted.arguments, grid=(1,), warmup=True, **dict(wanted.constants))
    return Compiled(f"{wanted.module}.{wanted.function}", all(seen))


def _note(seen: list[bool], *, cache_hit: bool, **_: object) -> None:
    seen.append(cache_hit)
