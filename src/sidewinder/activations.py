"""The activations of MLPs, experts and gates: one list, for all that name or number them."""

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
"""Names of the factors that `ops.gated_activation` has; their order is csrc/kernels.h's."""

NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}
"""What native kernels call them."""

SQUARED_RELU = "relu2"
"""Of an MLP without a gate: ReLU, with itself as the other factor."""

IN_CHECKPOINTS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""What checkpoints call them."""

SILU_IN_CHECKPOINTS = tuple(name for name, ours in IN_CHECKPOINTS.items() if ours == "silu")
"""What checkpoints call the only activation that convolutions and most families' MLPs have."""
