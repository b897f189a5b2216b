"""Mamba-1's selective scan over packed sequences, from and into state slots."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.selective_scan import chunked, reference

selective_scan = Operator(
    "selective_scan",
    reference=reference.selective_scan,
    torch=chunked.selective_scan,
    triton="sidewinder.ops.selective_scan.triton:selective_scan",
)
