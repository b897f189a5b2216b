"""Linear map: the definition."""

from torch import Tensor

from sidewinder.packing import PackedWeight
from sidewinder.quantise import Int8Weight


def linear(
    x: Tensor, weight: Tensor | Int8Weight | PackedWeight, bias: Tensor | None = None
) -> Tensor:
    """`y[t] = weight @ x[t] + bias`.

    Args:
        x: `[T, i]`; may be a column slice (row stride ≥ i).
        weight: `[o, i]`; one in int8 counts as its `dequantise()`, a packed one as its `unpack()`.
        bias: `[o]` or None.

    Returns:
        `[T, o]`, contiguous, in x's dtype; the sum is float32, rounded once.
    """
    if isinstance(weight, PackedWeight):
        weight = weight.unpack()
    wide = weight.dequantise() if isinstance(weight, Int8Weight) else weight.float()
    y = (x.float()[:, None, :] * wide[None, :, :]).sum(-1)
    return (y if bias is None else y + bias.float()).to(x.dtype)
