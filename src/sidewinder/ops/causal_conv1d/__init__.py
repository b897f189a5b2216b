"""Causal depthwise convolution over packed sequences, from and into state slots."""

from sidewinder.ops.causal_conv1d import reference, vectorized
from sidewinder.ops.dispatch import Operator

causal_conv1d = Operator(
    "causal_conv1d",
    reference=reference.causal_conv1d,
    torch=vectorized.causal_conv1d,
    triton="sidewinder.ops.causal_conv1d.triton:causal_conv1d",
)
