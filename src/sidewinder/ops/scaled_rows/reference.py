"""Rows times a factor each: the definition."""

from torch import Tensor


def scaled_rows(x: Tensor, factor: Tensor) -> Tensor:
    """`y[t] = x[t] * factor[t]`.

    Args:
        x: `[T, d]`; may be a column slice (row stride ≥ d).
        factor: `[T, 1]`, float32.

    Returns:
        `[T, d]`, contiguous, in x's dtype. Arithmetic is float32, rounded once.
    """
    return (x.float() * factor).to(x.dtype)
