"""What the kernels' tests share: the levels that run here, and poisoned outputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor

from sidewinder.ops import native

if not native.is_available():
    pytest.skip("built without the native module", allow_module_level=True)

from sidewinder import _native

ALL_LEVELS = ("avx512_bf16", "avx512", "avx2", "neon", "portable")
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2**-7}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])


def _runs_here(level: str) -> bool:
    before = _native.isa()
    try:
        _native.set_isa(level)
    except ValueError:
        return False
    finally:
        _native.set_isa(before)
    return True


LEVELS = pytest.mark.parametrize("level", [level for level in ALL_LEVELS if _runs_here(level)])


@contextmanager
def kernels_of(level: str, threads: int = 1) -> Iterator[None]:
    """Run native operators on this level, with outputs full of NaN before each call."""
    before = _native.isa(), _native.threads()
    _native.set_isa(level)
    _native.set_threads(threads)
    try:
        with mock.patch.object(torch, "empty", _poisoned):
            yield
    finally:
        _native.set_isa(before[0])
        _native.set_threads(before[1])


def _poisoned(*args: object, **kwargs: object) -> Tensor:
    made: Tensor = _empty(*args, **kwargs)  # type: ignore[call-overload]
    return made.fill_(torch.nan if made.is_floating_point() else torch.iinfo(made.dtype).max)


_empty = torch.empty
