"""Linear map of rows."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.linear import reference, vectorized

linear = Operator(
    "linear",
    reference=reference.linear,
    torch=vectorized.linear,
    triton="sidewinder.ops.linear.triton:linear",
)
