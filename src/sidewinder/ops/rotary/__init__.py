"""Turning queries and keys by their positions."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.rotary import reference, vectorized

rotary = Operator(
    "rotary",
    reference=reference.rotary,
    torch=vectorized.rotary,
    triton="sidewinder.ops.rotary.triton:rotary",
)
