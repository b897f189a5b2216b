"""Linear map: the definition."""

from torch import Tensor

from sidewinder.packing import PackedWeight
from sidewinder.quantise import QuantisedWeight


def linear(
    x: Tensor, weight: Tensor | QuantisedWeight | PackedWeight, bias: Tensor | None = None
) -> Tensor:
    """`y[t] = weight @ x[t] + bias`.

    Args:
        x: `[T, i]`; may be a column slice (row stride ≥ i).
        weight: `[o, i]`; integers count as their `dequantise()`, a packed one as its `unpack()`.
        bias: `[o]` or None.

    Returns:
        `[T, o]`, contiguous, in x's dtype; the sum is float32, rounded once.
    """
    if isinstance(weight, PackedWeight):
        weight = weight.unpack()
    wide = weight.dequantise() if isinstance(weight, QuantisedWeight) else weight.float()
    y = (x.float()[:, None, :] * wide[None, :, :]).sum(-1)
    return (y if bias is None else y + bias.float()).to(x.dtype)
