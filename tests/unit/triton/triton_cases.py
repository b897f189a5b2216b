"""What the tests of Triton kernels share: the device, tolerances, and running on it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from sidewinder.ops import launching, tuning
from sidewinder.quantise import QuantisedWeight
from sidewinder.state.batch import Sequences
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.prompt_index import PromptIndex

if not launching.is_installed():
    pytest.skip("Triton is not installed", allow_module_level=True)

__all__ = ["launching", "tuning"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])


def here(value: Any) -> Any:
    """The same tensor (strides included), sequences or index on the device under test."""
    if isinstance(value, Sequences):
        names = ("cu_seqlens", "slots", "fresh", "chains")
        tensors = {name: here(getattr(value, name)) for name in names}
        return replace(value, **tensors)
    if isinstance(value, KVIndex):
        return replace(value, write=here(value.write), read=tuple(map(here, value.read)))
    if isinstance(value, PromptIndex):
        parts = {name: here(getattr(value, name)) for name in ("seqs", "starts", "read")}
        return PromptIndex(**parts)
    if isinstance(value, dict):
        return {name: here(part) for name, part in value.items()}
    if isinstance(value, QuantisedWeight):
        return replace(value, values=here(value.values), scales=here(value.scales))
    if not isinstance(value, Tensor):
        return value
    wide = torch.full((value.untyped_storage().nbytes() // value.itemsize,), 0, dtype=value.dtype)
    wide.set_(value.untyped_storage())
    copy = wide.to(DEVICE, copy=True)
    return copy.as_strided(value.shape, value.stride(), value.storage_offset())


def on_device(function: Callable[..., Any], **arguments: Any) -> Any:
    """`function` with copies of its arguments on the device; results on the CPU.

    `state` and `out`, which are written in place, are passed as they are. Outputs are poisoned.
    """
    arguments = {
        name: value if name in ("state", "out") else here(value)
        for name, value in arguments.items()
    }
    with poisoned_outputs():
        result = function(**arguments)
    return tuple(part.cpu() for part in result) if isinstance(result, tuple) else result.cpu()


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Fill what `torch.empty` and `torch.empty_like` return with NaN, or bytes of ones."""
    with ExitStack() as stack:
        for name in ("empty", "empty_like"):
            stack.enter_context(mock.patch.object(torch, name, _poisoned(getattr(torch, name))))
        yield


def _poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else 255)

    return made


@contextmanager
def overridden(**configs: dict[str, int]) -> Iterator[None]:
    """Block sizes by kernel: small ones, so that short sequences have several chunks."""
    with ExitStack() as stack:
        for name, config in configs.items():
            stack.enter_context(tuning.overridden(name, **config))
        yield


def interpreter_builder() -> Any:
    """What runs a grid's programs in Triton's interpreter, one by one."""
    from triton.runtime import interpreter

    return interpreter.interpreter_builder


@contextmanager
def programs_backwards(backwards: bool = True) -> Iterator[None]:
    """Inside, Triton's interpreter runs a grid's last program first."""
    builder = interpreter_builder()
    plain = builder.set_grid_idx

    def last_first(*place: int) -> None:
        dims = builder.grid_dim
        plain(*(size - 1 - i for size, i in zip(dims, place, strict=True)))

    with mock.patch.object(builder, "set_grid_idx", last_first if backwards else plain):
        yield
