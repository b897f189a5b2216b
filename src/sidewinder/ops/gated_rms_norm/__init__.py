"""Mamba-2's gated RMS norm over whole groups of channels."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.gated_rms_norm import reference, vectorized

gated_rms_norm = Operator(
    "gated_rms_norm",
    reference=reference.gated_rms_norm,
    torch=vectorized.gated_rms_norm,
    triton="sidewinder.ops.gated_rms_norm.triton:gated_rms_norm",
)
