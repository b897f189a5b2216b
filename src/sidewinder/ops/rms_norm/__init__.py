"""Root-mean-square normalisation, optionally of the sum with a residual."""

from typing import overload

from torch import Tensor

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.rms_norm import reference, vectorized

operator = Operator(
    "rms_norm",
    reference=reference.rms_norm,
    torch=vectorized.rms_norm,
    triton="sidewinder.ops.rms_norm.triton:rms_norm",
)


@overload
def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor: ...


@overload
def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, residual: Tensor
) -> tuple[Tensor, Tensor]: ...


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """As `reference.rms_norm`, on the chosen backend."""
    return operator(x, weight, eps, residual)
