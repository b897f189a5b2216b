"""Mamba-1's selective scan with what makes its step size, B and C from one projection's output."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.projected_scan import parts, reference

projected_scan = Operator(
    "projected_scan",
    reference=reference.projected_scan,
    torch=parts.projected_scan,
    triton="sidewinder.ops.projected_scan.triton:projected_scan",
)
