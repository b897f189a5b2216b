"""A partial sum and a scalar per row in one message: the definition."""

import torch
from torch import Tensor


def with_scalar(partial: Tensor, squares: Tensor, divisor: float, rank: int, ranks: int) -> Tensor:
    """One message of `partial` and the scalars `squares / divisor`, to be summed over ranks.

    A 16-bit message would round the scalar, and a wrong scalar spoils the whole row. So each rank
    sends it as a rounded part and a remainder, in two columns of its own where others send zero:
    the parts arrive exactly. `ops.scaled_rows` adds them up.

    Args:
        partial: `[T, d]`; may be a column slice (row stride ≥ d).
        squares: `[T, 1]`, float32.
        divisor: what they are divided by, in float32.
        rank: whose message it is, below `ranks`.

    Returns:
        `[T, d + scalar_columns]`, contiguous, in partial's dtype.
    """
    scalar = squares / divisor
    if partial.dtype == torch.float32:
        return torch.cat([partial, scalar], dim=1)
    rounded = scalar.to(partial.dtype)
    parts = partial.new_zeros(partial.shape[0], scalar_columns(partial.dtype, ranks))
    parts[:, 2 * rank] = rounded[:, 0]
    parts[:, 2 * rank + 1] = (scalar - rounded.float())[:, 0]
    return torch.cat([partial, parts], dim=1)


def scalar_columns(dtype: torch.dtype, ranks: int) -> int:
    """How many columns of a message hold the scalar's parts."""
    return 1 if dtype == torch.float32 else 2 * ranks
