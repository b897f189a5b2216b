"""The experts of every token, and their shares in its result."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.route import reference, vectorized

route = Operator(
    "route",
    reference=reference.route,
    torch=vectorized.route,
    triton="sidewinder.ops.route.triton:route",
)
