"""One dispatch for all operators: which implementation of each runs.

Backends, slowest first: `reference` (the definition: a plain loop over tokens), `torch` (chunked,
no loop over tokens), `native` (C++, registered by `sidewinder.ops.native` where it was built). The
fastest registered one runs, unless the environment variable `SIDEWINDER_OPS` or `forced` names one.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

BACKENDS = ("reference", "torch", "native")
ENVIRONMENT_VARIABLE = "SIDEWINDER_OPS"


class Operator(Generic[P, R]):
    """A function with several implementations; calling it runs the chosen one.

    Args:
        name: the operator's name, as in `sidewinder.ops.<name>`.
        reference: the definition.
        torch: the implementation in torch operations.
    """

    def __init__(self, name: str, reference: Callable[P, R], torch: Callable[P, R]) -> None:
        self.name = name
        self.implementations: dict[str, Callable[P, R]] = {"reference": reference, "torch": torch}
        self._choose()
        _operators[name] = cast(Operator[..., object], self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._chosen(*args, **kwargs)

    def register(self, backend: str, implementation: Callable[P, R]) -> None:
        """Add an implementation (`native`), which takes effect at once."""
        assert backend in BACKENDS, backend
        self.implementations[backend] = implementation
        self._choose()

    def _choose(self) -> None:
        limit = _check(_forced) if _forced else BACKENDS[-1]
        best_first = reversed(BACKENDS[: BACKENDS.index(limit) + 1])
        self._chosen = next(
            self.implementations[backend]
            for backend in best_first
            if backend in self.implementations
        )


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
