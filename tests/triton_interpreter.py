"""Triton's interpreter, which runs kernels where there is no GPU, in half of its time.

Triton replaces the functions of its language by ones that compute with numpy, and does so again for
every helper that a kernel calls, which takes as long as a hundred operations. Here it is done once
for a process, which interprets all of its kernels.
"""

from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any


class _StaysReplaced:
    """What a launch calls at its end."""

    def restore(self) -> None:
        """Nothing: the next launch wants the same functions."""


def replace_once() -> None:
    """From now on; `TRITON_INTERPRET` is set and Triton was not imported before."""
    from triton import language
    from triton.runtime import interpreter

    replace: Callable[[FunctionType], Any] = interpreter._patch_lang
    functions, modules = set[FunctionType](), set[frozenset[int]]()

    def replace_if_new(function: FunctionType) -> _StaysReplaced:
        if function not in functions:
            functions.add(function)
            seen = frozenset(
                id(value)
                for value in function.__globals__.values()
                if isinstance(value, ModuleType) and value in (language, language.core)
            )
            if seen not in modules:
                modules.add(seen)
                replace(function)
        return _StaysReplaced()

    interpreter._patch_lang = replace_if_new
