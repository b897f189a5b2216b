"""A rank's partial sum and its mean square in one message, to be summed over ranks."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.with_scalar import reference

with_scalar = Operator(
    "with_scalar",
    reference=reference.with_scalar,
    torch=reference.with_scalar,
    triton="sidewinder.ops.with_scalar.triton:with_scalar",
)
"""Rows with a scalar each that keeps its precision in 16 bits."""
