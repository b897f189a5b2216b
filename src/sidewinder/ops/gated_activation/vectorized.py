"""A gated MLP's activation by torch's own functions."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """As `reference.gated_activation`."""
    return FUNCTIONS[activation](gate.float()).mul_(up.float()).to(gate.dtype)
