"""A gated MLP's activation: the definition."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """`x` times the probability that a normal variable is below it."""
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def gelu_tanh(x: Tensor) -> Tensor:
    """`gelu` by way of tanh, as GPT-2 has it."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def relu(x: Tensor) -> Tensor:
    """`max(x, 0)`."""
    return x.clamp(min=0.0)


def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`."""
    return x * torch.sigmoid(x)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "silu": silu,
}
"""By name, all of `activations.ACTIVATIONS`."""


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """`y = act(gate) * up`.

    Args:
        gate, up: `[T, d]`; may be column slices (row stride ≥ d).
        activation: one of `activations.ACTIVATIONS`.

    Returns:
        `[T, d]`, contiguous, in gate's dtype. Arithmetic is float32, rounded once.
    """
    y = FUNCTIONS[activation](gate.float()) * up.float()
    return y.to(gate.dtype).contiguous()
