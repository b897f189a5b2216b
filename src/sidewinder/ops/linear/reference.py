"""Linear map: the definition."""

from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`y[t] = weight @ x[t] + bias`.

    Args:
        x: `[T, i]`; may be a column slice (row stride ≥ i).
        weight: `[o, i]`.
        bias: `[o]` or None.

    Returns:
        `[T, o]`, contiguous, in x's dtype; the sum is float32, rounded once.
    """
    y = (x.float()[:, None, :] * weight.float()[None, :, :]).sum(-1)
    return (y if bias is None else y + bias.float()).to(x.dtype)
