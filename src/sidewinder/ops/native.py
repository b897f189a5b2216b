"""The operators in C++ (`csrc/`), where the extension module was built; registered on import.

The wrappers allocate the outputs and hand everything to `sidewinder._native`, which checks shapes,
strides and dtypes (`ValueError`) and runs the kernel. Tensors on other devices go to the torch
implementation.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from sidewinder import extension
from sidewinder.activations import NUMBERS
from sidewinder.ops import dispatch, native_attention, native_linear
from sidewinder.ops.add_rows import add_rows as add_operator
from sidewinder.ops.add_rows import reference as torch_add
from sidewinder.ops.causal_conv1d import causal_conv1d as conv_operator
from sidewinder.ops.causal_conv1d import vectorized as torch_conv
from sidewinder.ops.concat_rms_norm import operator as concat_norm_operator
from sidewinder.ops.concat_rms_norm import vectorized as torch_concat_norm
from sidewinder.ops.gated_activation import gated_activation as gated_activation_operator
from sidewinder.ops.gated_activation import vectorized as torch_gated_activation
from sidewinder.ops.gated_rms_norm import gated_rms_norm as gated_norm_operator
from sidewinder.ops.gated_rms_norm import vectorized as torch_gated_norm
from sidewinder.ops.gated_squares import gated_squares as gated_squares_operator
from sidewinder.ops.gated_squares import vectorized as torch_gated_squares
from sidewinder.ops.rms_norm import operator as norm_operator
from sidewinder.ops.rms_norm import vectorized as torch_norm
from sidewinder.ops.scaled_rows import reference as torch_scaled_rows
from sidewinder.ops.scaled_rows import scaled_rows as scaled_rows_operator
from sidewinder.ops.selective_scan import chunked as torch_selective_scan
from sidewinder.ops.selective_scan import selective_scan as selective_scan_operator
from sidewinder.ops.ssd_scan import chunked as torch_ssd_scan
from sidewinder.ops.ssd_scan import ssd_scan as ssd_scan_operator
from sidewinder.ops.with_scalar import reference as torch_with_scalar
from sidewinder.ops.with_scalar import with_scalar as with_scalar_operator
from sidewinder.ops.with_scalar.reference import scalar_columns
from sidewinder.ops.workspace import empty
from sidewinder.state.batch import Sequences

_native = extension.module


def is_available() -> bool:
    """Whether the extension module was built and can be loaded."""
    return _native is not None


def isa() -> str | None:
    """The level in use (`avx512_bf16`, `avx512`, `avx2`; `neon`; `portable`), if it is built."""
    return None if _native is None else str(_native.isa())


def set_threads(n: int) -> None:
    """Let the kernels of this process use `n` threads; results do not depend on it.

    Raises:
        ValueError: if `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"threads={n}: the kernels need 1 thread or more")
    if _native is not None:
        _native.set_threads(n)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    seqs: Sequences,
    activation: bool = True,
) -> Tensor:
    """As `reference.causal_conv1d`."""
    if not x.is_cpu:
        return torch_conv.causal_conv1d(x, weight, bias, state, seqs, activation)
    y = empty(x.shape, x.dtype)
    _native.causal_conv1d(
        x, weight, bias, state, seqs.cu_seqlens, seqs.slots, seqs.sources, seqs.fresh, activation, y
    )
    return y


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    seqs: Sequences,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.selective_scan`."""
    if not x.is_cpu:
        return torch_selective_scan.selective_scan(x, dt, A, B, C, D, z, dt_bias, state, seqs, out)
    y = empty(x.shape, x.dtype) if out is None else out
    _native.selective_scan(
        x,
        dt,
        A,
        B,
        C,
        D,
        z,
        dt_bias,
        state,
        seqs.cu_seqlens,
        seqs.slots,
        seqs.sources,
        seqs.fresh,
        y,
    )
    return y


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    seqs: Sequences,
    dt_limit: tuple[float, float],
    head_group: Tensor,
) -> Tensor:
    """As `reference.ssd_scan`."""
    if not x.is_cpu:
        return torch_ssd_scan.ssd_scan(
            x, dt, A, B, C, D, dt_bias, state, seqs, dt_limit, head_group
        )
    y = empty(x.shape, x.dtype)
    _native.ssd_scan(
        x, dt, A, B, C, D, dt_bias, state, seqs.cu_seqlens, seqs.slots, seqs.sources, seqs.fresh,
        dt_limit[0], dt_limit[1], head_group, y,
    )  # fmt: skip
    return y


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """As `reference.rms_norm`."""
    if not x.is_cpu:
        return torch_norm.rms_norm(x, weight, eps, residual)
    y = empty(x.shape, x.dtype if weight is None else weight.dtype)
    if residual is None:
        _native.rms_norm(x, weight, eps, None, y, None)
        return y
    total = empty(residual.shape, residual.dtype)
    _native.rms_norm(x, weight, eps, residual, y, total)
    return y, total


def concat_rms_norm(
    x: Tensor, beside: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """As `reference.concat_rms_norm`."""
    if not x.is_cpu:
        return torch_concat_norm.concat_rms_norm(x, beside, weight, eps, residual)
    y = empty((x.shape[0], x.shape[1] + beside.shape[1]), weight.dtype)
    total = None if residual is None else empty(residual.shape, residual.dtype)
    _native.rms_norm(x, weight, eps, residual, y, total, beside)
    return y if total is None else (y, total)


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """As `reference.gated_activation`."""
    if not gate.is_cpu:
        return torch_gated_activation.gated_activation(gate, up, activation)
    y = empty(gate.shape, gate.dtype)
    _native.gated_activation(gate, up, NUMBERS[activation], y)
    return y


def gated_rms_norm(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool = False,
) -> Tensor:
    """As `reference.gated_rms_norm`."""
    if not x.is_cpu:
        return torch_gated_norm.gated_rms_norm(x, z, weight, eps, group_size, norm_before_gate)
    y = empty(x.shape, x.dtype)
    _native.gated_rms_norm(x, z, weight, eps, group_size, norm_before_gate, y)
    return y


def gated_squares(
    x: Tensor, z: Tensor, weight: Tensor, norm_before_gate: bool = False
) -> tuple[Tensor, Tensor]:
    """As `reference.gated_squares`."""
    if not x.is_cpu:
        return torch_gated_squares.gated_squares(x, z, weight, norm_before_gate)
    u, squares = empty(x.shape, x.dtype), empty((x.shape[0], 1), torch.float32)
    _native.gated_squares(x, z, weight, norm_before_gate, u, squares)
    return u, squares


def with_scalar(partial: Tensor, squares: Tensor, divisor: float, rank: int, ranks: int) -> Tensor:
    """As `reference.with_scalar`; float16, which our kernels lack, by torch."""
    if not partial.is_cpu or partial.dtype == torch.float16:
        return torch_with_scalar.with_scalar(partial, squares, divisor, rank, ranks)
    rows, width = partial.shape
    columns = scalar_columns(partial.dtype, ranks)
    message = empty((rows, width + columns), partial.dtype)
    _native.with_scalar(partial, squares, divisor, rank, ranks, message)
    return message


def scaled_rows(x: Tensor, mean_squares: Tensor, eps: float) -> Tensor:
    """As `reference.scaled_rows`."""
    if not x.is_cpu:
        return torch_scaled_rows.scaled_rows(x, mean_squares, eps)
    y = empty(x.shape, x.dtype)
    _native.scaled_rows(x, mean_squares, eps, y)
    return y


def add_rows(x: Tensor, y: Tensor) -> Tensor:
    """As `reference.add_rows`."""
    if not x.is_cpu:
        return torch_add.add_rows(x, y)
    total = empty(x.shape, x.dtype)
    _native.add_rows(x, y, total)
    return total


def new_recording() -> Any:
    """A `_native.Recording`: of this thread's native calls, to be made again."""
    return _native.Recording()


def _register() -> None:
    conv_operator.register("native", causal_conv1d)
    selective_scan_operator.register("native", selective_scan)
    ssd_scan_operator.register("native", ssd_scan)
    norm_operator.register("native", rms_norm)
    concat_norm_operator.register("native", concat_rms_norm)
    gated_activation_operator.register("native", gated_activation)
    gated_norm_operator.register("native", gated_rms_norm)
    gated_squares_operator.register("native", gated_squares)
    with_scalar_operator.register("native", with_scalar)
    scaled_rows_operator.register("native", scaled_rows)
    add_operator.register("native", add_rows)
    native_linear.register()
    native_attention.register()


if _native is not None:
    _register()
elif dispatch.forced_backend() is None:
    logging.getLogger(__name__).warning(
        "sidewinder runs without its native kernels (%s): torch operators instead, several times "
        "slower on a CPU",
        extension.missing,
    )
