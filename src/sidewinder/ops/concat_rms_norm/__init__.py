"""The RMS norm of two tensors side by side; the first may be a sum with a residual."""

from typing import overload

from torch import Tensor

from sidewinder.ops.concat_rms_norm import reference, vectorized
from sidewinder.ops.dispatch import Operator

operator = Operator(
    "concat_rms_norm",
    reference=reference.concat_rms_norm,
    torch=vectorized.concat_rms_norm,
    triton="sidewinder.ops.concat_rms_norm.triton:concat_rms_norm",
)


@overload
def concat_rms_norm(x: Tensor, beside: Tensor, weight: Tensor, eps: float) -> Tensor: ...


@overload
def concat_rms_norm(
    x: Tensor, beside: Tensor, weight: Tensor, eps: float, residual: Tensor
) -> tuple[Tensor, Tensor]: ...


def concat_rms_norm(
    x: Tensor, beside: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """As `reference.concat_rms_norm`, on the chosen backend."""
    return operator(x, beside, weight, eps, residual)
