"""How the engine drives its ranks: one call, made on every rank."""

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from sidewinder.collectives.base import Collectives
from sidewinder.parallel.forks import own_threads


class Executor(Protocol):
    """Runs methods of the runner on every rank of the group."""

    def call(self, method: str, *args: object) -> Any:
        """Run `runner.method(*args)` on all ranks; rank 0's result (under torchrun: its own).

        Raises:
            RankFailure: if a rank died or fell silent; the executor is closed.
            RankError: if a rank raised an exception that is not of a standard type.
            ValueError and other standard types: as the rank raised them.
        """
        ...

    def check(self) -> None:
        """Whether the ranks still run, between two calls.

        Raises:
            RankFailure: if one has ended, or fallen silent; the executor is closed.
        """
        ...

    def close(self) -> None:
        """End the ranks and leave nothing behind. Calling twice is fine."""
        ...


class InlineExecutor:
    """The runner lives in this process: `tp=1`, and every rank under torchrun.

    Args:
        runner: the object whose methods are called.
        collectives: closed together with the executor.
        threads: that the runner computes on.
    """

    def __init__(self, runner: object, collectives: Collectives, threads: int = 1) -> None:
        self._runner: object | None = runner
        self.collectives = collectives
        self._threads = threads

    def call(self, method: str, *args: object) -> Any:
        if self._runner is None:
            raise RuntimeError("the executor is closed")
        own_threads(self._threads)
        return getattr(self._runner, method)(*args)

    def check(self) -> None:
        pass  # we run

    def close(self) -> None:
        self._runner = None
        self.collectives.close()


def resolve_target(target: str) -> Callable[..., object]:
    """The function that "module:function" names; it builds a rank's runner."""
    module, _, function = target.partition(":")
    found: Callable[..., object] = getattr(importlib.import_module(module), function)
    return found
