"""Triton's interpreter, which runs kernels where there is no GPU, in a third of its time.

What it does for every operation of a kernel again, it does here once: the functions of Triton's
language are replaced for good by ones that compute with numpy, and what follows from a type alone
is remembered. Each replacement calls Triton's own function the first time.
"""

from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any


def quicken() -> None:
    """From now on; `TRITON_INTERPRET` is set and Triton was not imported before."""
    _replace_language_once()
    _remember_types()
    _remember_numpy_types()
    _leave_equal_shapes()


class _StaysReplaced:
    """What a launch calls at its end."""

    def restore(self) -> None:
        """Nothing: the next launch wants the same functions."""


def _replace_language_once() -> None:
    """Triton does so at every call of a helper, which takes as long as a hundred operations."""
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


def _remember_types() -> None:
    """A block's type, and what its tensors know of it: two of each are made by an addition."""
    from triton.language import core

    make_type, make_tensor = core.block_type.__init__, core.tensor.__init__
    known_types, shapes = dict[Any, dict[str, Any]](), dict[Any, Any]()

    def init_type(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(n.value if isinstance(n, core.constexpr) else n for n in shape)
        known = known_types.get((element_ty.name, sizes))
        if known is None or known["element_ty"] != element_ty:
            make_type(self, element_ty, shape)
            self.shape = shapes.setdefault(sizes, self.shape)
            self._of_tensors = {}
            known = known_types[element_ty.name, sizes] = dict(vars(self))
        self.__dict__.update(known)

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        known = type.__dict__.setdefault("_of_tensors", {})
        if not known:
            make_tensor(self, None, type)
            known.update(vars(self))
        self.__dict__.update(known)
        self.handle = handle

    core.block_type.__init__, core.tensor.__init__ = init_type, init_tensor


def _remember_numpy_types() -> None:
    """Triton makes a table of all types to look one up."""
    from triton.runtime import interpreter

    look_up: Callable[[Any], Any] = interpreter._get_np_dtype
    known = dict[str, Any]()

    def numpy_type(of: Any) -> Any:
        name = of.scalar.name
        if name not in known:
            known[name] = look_up(of)
        return known[name]

    interpreter._get_np_dtype = numpy_type


def _leave_equal_shapes() -> None:
    """Blocks of one shape, which `_remember_types` made one object, need no broadcast."""
    from triton.language.semantic import TritonSemantic

    broadcast: Callable[[Any, Any, Any], Any] = TritonSemantic.broadcast_impl_value

    def unless_equal(self: Any, lhs: Any, rhs: Any) -> Any:
        if lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape is rhs.type.shape:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    TritonSemantic.broadcast_impl_value = unless_equal
