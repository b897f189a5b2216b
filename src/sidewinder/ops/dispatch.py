"""One dispatch for all operators: which implementation of each runs.

Backends, slowest first: `reference` (the definition: a plain loop over tokens), `torch` (chunked,
no loop over tokens), `native` (C++, registered by `sidewinder.ops.native` where it was built),
`triton` (where Triton is installed). The fastest registered one that serves the device of the first
argument runs, unless the environment variable `SIDEWINDER_OPS` or `forced` names one: `native`
serves CPUs, `triton` GPUs, and where kernels are interpreted or only recorded
(`launching.serves_any_device`) other devices too, but there only when named.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Generic, ParamSpec, TypeVar, cast

import torch

from sidewinder.ops.launching import is_installed, serves_any_device

P = ParamSpec("P")
R = TypeVar("R")

BACKENDS = ("reference", "torch", "native", "triton")
ENVIRONMENT_VARIABLE = "SIDEWINDER_OPS"


class Operator(Generic[P, R]):
    """A function with several implementations; calling it runs the chosen one.

    Args:
        name: the operator's name, as in `sidewinder.ops.<name>`.
        reference: the definition.
        torch: the implementation in torch operations.
        triton: the module and function with the implementation in Triton, "module:function", if
            there is one. Imported when it is first needed: that takes long.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[P, R],
        torch: Callable[P, R],
        triton: str | None = None,
    ) -> None:
        self.name = name
        self.implementations: dict[str, Callable[P, R]] = {"reference": reference, "torch": torch}
        if triton is not None and is_installed():
            self.implementations["triton"] = self._imported_later(triton)
        self._choose()
        _operators[name] = cast(Operator[..., object], self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0] if args else next(iter(kwargs.values()), None)
        if getattr(first, "is_cuda", False):
            return self._chosen_for_gpu(*args, **kwargs)
        return self._chosen(*args, **kwargs)

    def register(self, backend: str, implementation: Callable[P, R]) -> None:
        """Add an implementation, which takes effect at once."""
        assert backend in BACKENDS, backend
        self.implementations[backend] = implementation
        self._choose()

    def _imported_later(self, where: str) -> Callable[P, R]:
        def import_and_run(*args: P.args, **kwargs: P.kwargs) -> R:
            module, function = where.split(":")
            implementation: Callable[P, R] = getattr(import_module(module), function)
            self.register("triton", implementation)
            return implementation(*args, **kwargs)

        return import_and_run

    def _choose(self) -> None:
        limit = _check(_forced) if _forced else BACKENDS[-1]
        allowed = BACKENDS[: BACKENDS.index(limit) + 1]
        on_cpu = _forced == "triton" and serves_any_device()
        self.cpu_backend = self._fastest(allowed if on_cpu else allowed[:3])
        self._chosen = self.implementations[self.cpu_backend]
        self._chosen_for_gpu = self.implementations[
            self._fastest([name for name in allowed if name != "native"])
        ]

    def _fastest(self, slowest_first: Sequence[str]) -> str:
        return [name for name in slowest_first if name in self.implementations][-1]


def available() -> dict[str, tuple[str, ...]]:
    """The registered backends of every operator, slowest first."""
    return {
        name: tuple(backend for backend in BACKENDS if backend in operator.implementations)
        for name, operator in _operators.items()
    }


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """Run every operator on `backend` (or the next slower one it has) inside the `with` block.

    Raises:
        ValueError: for a backend that does not exist.
    """
    global _forced
    before = _forced
    _forced = _check(backend)
    _choose_all()
    try:
        yield
    finally:
        _forced = before
        _choose_all()


def forced_backend() -> str | None:
    """The backend that the environment or `forced` names, if any."""
    return _forced or None


def runs_triton(device: torch.device) -> bool:
    """Whether operators run Triton's kernels, where they have one, on tensors of `device`."""
    if not is_installed():
        return False
    if device.type == "cuda":
        return _forced in ("", "triton")
    return _forced == "triton" and serves_any_device()


def _check(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(
            f"{backend!r} is not an operator backend; {ENVIRONMENT_VARIABLE} may be one of "
            + ", ".join(BACKENDS)
        )
    return backend


def _choose_all() -> None:
    for operator in _operators.values():
        operator._choose()


_operators: dict[str, "Operator[..., object]"] = {}
_forced = os.environ.get(ENVIRONMENT_VARIABLE, "")
