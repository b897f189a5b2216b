"""Mamba-2's scan over packed sequences, from and into state slots."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.ssd_scan import chunked, reference

ssd_scan = Operator(
    "ssd_scan",
    reference=reference.ssd_scan,
    torch=chunked.ssd_scan,
    triton="sidewinder.ops.ssd_scan.triton:ssd_scan",
)
