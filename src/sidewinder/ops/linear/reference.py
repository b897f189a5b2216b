"""Linear map: the definition."""

from torch import Tensor

from sidewinder.quantise import Int8Weight


def linear(x: Tensor, weight: Tensor | Int8Weight, bias: Tensor | None = None) -> Tensor:
    """`y[t] = weight @ x[t] + bias`.

    Args:
        x: `[T, i]`; may be a column slice (row stride ≥ i).
        weight: `[o, i]`, or one in int8, which counts as its `dequantise()`.
        bias: `[o]` or None.

    Returns:
        `[T, o]`, contiguous, in x's dtype; the sum is float32, rounded once.
    """
    wide = weight.dequantise() if isinstance(weight, Int8Weight) else weight.float()
    y = (x.float()[:, None, :] * wide[None, :, :]).sum(-1)
    return (y if bias is None else y + bias.float()).to(x.dtype)
