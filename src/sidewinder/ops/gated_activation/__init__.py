"""A gated MLP's activation: `act(gate) * up`."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.gated_activation import reference, vectorized

gated_activation = Operator(
    "gated_activation",
    reference=reference.gated_activation,
    torch=vectorized.gated_activation,
    triton="sidewinder.ops.gated_activation.triton:gated_activation",
)
