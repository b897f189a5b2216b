"""Sum of two tensors: the definition."""

from torch import Tensor


def add_rows(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`.

    Args:
        x, y: `[T, d]`, of one dtype; may be column slices (row stride ≥ d).

    Returns:
        `[T, d]`, contiguous, in their dtype; the sum is rounded once.
    """
    return (x + y).contiguous()
