"""Linear maps, routers and experts in C++, as `native.py` has the other operators."""

import functools
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sidewinder.activations import NUMBERS
from sidewinder.extension import module as _native
from sidewinder.model_config import RouterConfig
from sidewinder.ops.experts import experts as experts_operator
from sidewinder.ops.experts import grouped
from sidewinder.ops.experts.matrices import ExpertMatrices
from sidewinder.ops.linear import linear as linear_operator
from sidewinder.ops.linear import vectorized as torch_linear
from sidewinder.ops.route import route as route_operator
from sidewinder.ops.route import vectorized as torch_route
from sidewinder.ops.route.reference import LEAST_SUM
from sidewinder.ops.workspace import empty
from sidewinder.packing import PackedWeight
from sidewinder.quantise import QuantisedWeight

if TYPE_CHECKING:
    from sidewinder.layers.weights import Weight

SMALL_ROWS = 32
"""Rows up to which the portable kernel beats torch's matrix product in float32."""

_sets: "WeakKeyDictionary[ExpertMatrices, Any]" = WeakKeyDictionary()
"""What the native code knows of matrices, once for each layer."""


def packed_bits(device: torch.device) -> tuple[int, ...]:
    """Matrices of how many bits should be packed at load (`packing.pack_weights`): of 16, 8, 4."""
    if device.type != "cpu" or linear_operator.cpu_backend != "native":
        return ()
    return tuple(bits for bits in (16, 8, 4) if _native.has_packed(bits))


def linear(
    x: Tensor, weight: Tensor | QuantisedWeight | PackedWeight, bias: Tensor | None = None
) -> Tensor:
    """As `reference.linear`: our kernel, or torch's matrix product where that is faster."""
    if not x.is_cpu:
        return torch_linear.linear(x, weight, bias)
    if isinstance(weight, PackedWeight):
        if weight.scales is None and x.dtype != torch.bfloat16:
            return torch_linear.linear(x, weight, bias)
        y = empty((x.shape[0], weight.shape[0]), x.dtype)
        _native.linear_packed(
            x, weight.data, weight.scales, bias, y, weight.group_size, weight.bits
        )
        return y
    if isinstance(weight, QuantisedWeight):
        y = empty((x.shape[0], weight.shape[0]), x.dtype)
        _native.linear(x, weight.values, weight.scales, bias, y, weight.group_size, weight.bits)
        return y
    if x.dtype == weight.dtype and not multiplies(x.shape[0], x.dtype):
        return torch_linear.linear(x, weight, bias)
    y = empty((x.shape[0], weight.shape[0]), x.dtype)
    _native.linear(x, weight, None, bias, y)
    return y


def multiplies(rows: int, dtype: torch.dtype) -> bool:
    """Whether plain matrices in `dtype` are multiplied with so many rows here, not by torch."""
    return dtype != torch.float32 or rows <= SMALL_ROWS or not _is_portable()


@functools.cache
def _is_portable() -> bool:
    """Narrow vectors: only there is torch's product worth that a row depends on its batch."""
    return str(_native.isa()) == "portable"


def route(
    x: Tensor, weight: Tensor, bias: Tensor | None, config: RouterConfig
) -> tuple[Tensor, Tensor]:
    """As `reference.route`."""
    if not _takes(x):
        return torch_route.route(x, weight, bias, config)
    shape = torch.Size((x.shape[0], config.n_chosen))
    chosen, shares = empty(shape, torch.int32), empty(shape, torch.float32)
    _native.route(
        x, weight, bias, config.scores == "softmax", config.normalised, config.scale, LEAST_SUM,
        config.n_groups, config.n_groups_chosen, chosen, shares,
    )  # fmt: skip
    return chosen, shares


def experts(
    x: Tensor, matrices: ExpertMatrices, chosen: Tensor, shares: Tensor, activation: str
) -> Tensor:
    """As `reference.experts`."""
    if not _takes(x) or not _multiplies(x, matrices):
        return grouped.experts(x, matrices, chosen, shares, activation)
    if matrices not in _sets:
        _sets[matrices] = _set_of(matrices)
    y = empty(x.shape, x.dtype)
    _native.experts(x, _sets[matrices], chosen, shares, NUMBERS[activation], y)
    return y


def _takes(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in (torch.float32, torch.bfloat16)


def _multiplies(x: Tensor, matrices: ExpertMatrices) -> bool:
    """Whether `ops.linear` would not leave these products to torch."""
    first = matrices.up[0]
    if isinstance(first, PackedWeight):
        return first.scales is not None or x.dtype == torch.bfloat16
    return isinstance(first, QuantisedWeight) or multiplies(len(x), x.dtype)


def _set_of(matrices: ExpertMatrices) -> Any:
    width, inner = matrices.widths
    gate = None if matrices.gate is None else [_parts(matrix) for matrix in matrices.gate]
    up, down = ([_parts(matrix) for matrix in part] for part in (matrices.up, matrices.down))
    packed = isinstance(matrices.up[0], PackedWeight)
    return _native.ExpertSet(gate, up, down, width, inner, packed)


def _parts(matrix: "Weight") -> tuple[Tensor, Tensor | None, int, int]:
    if isinstance(matrix, PackedWeight):
        return matrix.data, matrix.scales, matrix.group_size, matrix.bits
    if isinstance(matrix, QuantisedWeight):
        return matrix.values, matrix.scales, matrix.group_size, matrix.bits
    return matrix, None, 32, 8


def register() -> None:
    """Make these the operators' native implementations."""
    linear_operator.register("native", linear)
    route_operator.register("native", route)
    experts_operator.register("native", experts)
