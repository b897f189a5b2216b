"""A gated MLP's activation in Triton: blocks of columns of every row."""

import torch
from torch import Tensor

from sidewinder.ops.gated_activation import kernels
from sidewinder.ops.launching import blocks, early, launch, power_of_two

BLOCK = 1024
"""Columns of a program, 8 a thread."""


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """As `reference.gated_activation`."""
    rows, width = gate.shape
    assert gate.stride(1) == up.stride(1) == 1, "rows are contiguous"
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    block = power_of_two(width, most=BLOCK)
    launch(
        kernels.gate_by,
        (rows, blocks(width, block)),
        gate, gate.stride(0), up, up.stride(0), y, width,
        ACTIVATION=activation, BLOCK=block, num_warps=4, **early(),
    )  # fmt: skip
    return y
