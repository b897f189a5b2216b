"""Each token through the MLPs that its router chose."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.experts import grouped, reference

experts = Operator(
    "experts",
    reference=reference.experts,
    torch=grouped.experts,
    triton="sidewinder.ops.experts.triton:experts",
)
