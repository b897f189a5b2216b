"""Linear map on GPUs: torch's matrix product; for one row a kernel in Triton.

On an H100 it reads a decode step's matrices at 75 to 100 % of the bandwidth, torch's product at 60
to 88 % (docs/kernels.md). Where `ops.tuning` has measured torch's to be the faster, that runs.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sidewinder.ops import tuning
from sidewinder.ops.launching import blocks, early, launch
from sidewinder.ops.linear import kernels, vectorized

if TYPE_CHECKING:
    from sidewinder.layers.weights import Weight

TORCH: tuning.Config = {"block_o": 0}
LONG: tuning.Config = {"block_o": 1, "block_i": 4096, "num_warps": 8}
MIDDLE: tuning.Config = {"block_o": 2, "block_i": 1024, "num_warps": 4}
SHORT: tuning.Config = {"block_o": 4, "block_i": 256, "num_warps": 1}
"""For rows of so many inputs; torch where nothing is multiplied by Triton."""
OTHERS: tuple[tuning.Config, ...] = (
    *(
        {"block_o": block_o, "block_i": 256 * warps, "num_warps": warps}
        for block_o, warps in [(4, 2), (8, 2), (4, 4), (8, 1), (16, 1), (2, 2)]
    ),
    {"block_o": 1, "block_i": 2048, "num_warps": 4},
    {"block_o": 2, "block_i": 2048, "num_warps": 4},
)
"""A thread has eight or sixteen inputs at a time: wide loads of weights, and its own inputs need no
exchange."""


def candidates(inputs: int) -> tuple[tuning.Config, ...]:
    """For rows of so many inputs: the default first, which was the fastest on an H100 for most."""
    if inputs <= 512:
        return (SHORT, MIDDLE, LONG, TORCH, *OTHERS)
    if inputs < 3072:
        return (MIDDLE, LONG, SHORT, TORCH, *OTHERS)
    return (LONG, MIDDLE, SHORT, TORCH, *OTHERS)


def linear(x: Tensor, weight: "Weight", bias: Tensor | None = None) -> Tensor:
    """As `reference.linear`."""
    if not isinstance(weight, Tensor) or len(x) != 1 or weight.dtype != x.dtype:
        return vectorized.linear(x, weight, bias)
    assert x.stride(1) == weight.stride(1) == 1, "rows are contiguous"

    def run(config: tuning.Config) -> Tensor:
        return _run(x, weight, bias, config)

    sizes = (x.dtype, *weight.shape)
    return run(tuning.choose("row_product", sizes, candidates(weight.shape[1]), run))


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, config: tuning.Config) -> Tensor:
    if config["block_o"] == TORCH["block_o"]:
        return vectorized.linear(x, weight, bias)
    outputs, inputs = weight.shape
    y = torch.empty(1, outputs, dtype=x.dtype, device=x.device)
    launch(
        kernels.row_product,
        (blocks(outputs, config["block_o"]),),
        x, weight, weight.stride(0), bias, y, outputs, inputs,
        BLOCK_O=config["block_o"], BLOCK_I=config["block_i"], num_warps=config["num_warps"],
        **early(),
    )  # fmt: skip
    return y
