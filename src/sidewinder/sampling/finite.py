"""Rows of logits that hold NaN or infinity: nothing can be drawn from them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sidewinder.parallel.errors import NotFinite

NOT_FINITE = -1
"""In place of a token that was drawn from such a row."""


def check_finite(best: Tensor) -> None:
    """Raise if a row's largest logit, `best` `[rows]`, is not finite; NaN counts as the largest.

    Raises:
        NotFinite: naming the first such row.
    """
    finite = torch.isfinite(best)
    if not bool(finite.all()):
        raise _not_finite(int(torch.nonzero(~finite)[0]), len(best))


def check_drawn(tokens: Sequence[int], rows: Iterable[int]) -> None:
    """Raise NotFinite, naming it, if one of `rows` has `NOT_FINITE` among the drawn `tokens`."""
    for row in rows:
        if tokens[row] == NOT_FINITE:
            raise _not_finite(row, len(tokens))


def _not_finite(row: int, rows: int) -> NotFinite:
    return NotFinite(
        f"the model's logits hold NaN or infinity (row {row} of {rows}): the weights "
        "are damaged or overflow in this dtype; try dtype='float32'"
    )
