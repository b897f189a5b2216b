"""Mamba-2's gate where the norm after it spans ranks: gated values, and their sum of squares."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.gated_squares import reference, vectorized

gated_squares = Operator(
    "gated_squares",
    reference=reference.gated_squares,
    torch=vectorized.gated_squares,
    triton="sidewinder.ops.gated_squares.triton:gated_squares",
)
"""Gated values and the sum of squares that will scale them."""
