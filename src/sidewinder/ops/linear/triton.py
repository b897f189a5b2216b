"""Linear map on GPUs: torch's matrix product; for one row, and maybe a few, a kernel in Triton.

On an H100 `row_product` was faster than torch's product for all but one matrix of a decode step
(docs/log.md, 26 November 2026). For a few rows torch's runs until `ops.tuning` has measured
`few_rows_product` to be the faster: no card has run that one yet. Weights in 8 or 4 bits have
kernels of their own (`integer.py`).
"""

from typing import TYPE_CHECKING

import torch
import triton.language as tl
from torch import Tensor

from sidewinder.ops import tuning
from sidewinder.ops.launching import (
    SHARED_BYTES,
    blocks,
    early,
    launch,
    power_of_two,
    stages_that_fit,
)
from sidewinder.ops.linear import integer, kernels, vectorized
from sidewinder.quantise import QuantisedWeight

if TYPE_CHECKING:
    from sidewinder.layers.weights import Weight

OPERANDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
TORCH: tuning.Config = {"block_o": 0}
LONG: tuning.Config = {"block_o": 1, "block_i": 4096, "num_warps": 8}
MIDDLE: tuning.Config = {"block_o": 2, "block_i": 1024, "num_warps": 4}
SHORT: tuning.Config = {"block_o": 4, "block_i": 256, "num_warps": 1}
"""Block sizes of one row's product; `TORCH` stands for torch's own."""
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


def candidates(outputs: int, inputs: int) -> tuple[tuning.Config, ...]:
    """For one row by a matrix of so many outputs and inputs; the default first.

    An H100 chose the short blocks for dt_proj, the middle ones for in_proj and out_proj of width
    2,560, the long ones for wider matrices and for x_proj, whose few rows share the card.
    """
    if inputs <= 512:
        return (SHORT, MIDDLE, LONG, TORCH, *OTHERS)
    if inputs < 3072 or 512 < outputs < 3072:
        return (MIDDLE, LONG, SHORT, TORCH, *OTHERS)
    return (LONG, MIDDLE, SHORT, TORCH, *OTHERS)


MOST_ROWS = 64
"""Up to so many rows a product is bound by its weight's bytes."""
FEW_ROWS: tuple[tuning.Config, ...] = (
    TORCH,
    *(
        {"block_o": block_o, "block_i": block_i, "num_warps": 4, "num_stages": stages}
        for block_o, block_i, stages in [
            (32, 128, 4),
            (16, 256, 3),
            (64, 128, 4),
            (32, 256, 3),
            (64, 64, 5),
            (16, 128, 5),
        ]
    ),
)
"""For 2 to `MOST_ROWS` rows. Stages are how many tiles of weights are on their way at once. Where
they do not fit into the shared memory of workstation cards they are fewer, and tiles smaller."""


def linear(x: Tensor, weight: "Weight", bias: Tensor | None = None) -> Tensor:
    """As `reference.linear`."""
    if isinstance(weight, QuantisedWeight):
        return integer.linear(x, weight, bias)
    rows = len(x)
    if not isinstance(weight, Tensor) or weight.dtype != x.dtype or not 1 <= rows <= MOST_ROWS:
        return vectorized.linear(x, weight, bias)
    assert x.stride(1) == weight.stride(1) == 1, "rows are contiguous"

    def run(config: tuning.Config) -> Tensor:
        if config["block_o"] == TORCH["block_o"]:
            return vectorized.linear(x, weight, bias)
        return (_one_row if rows == 1 else _few_rows)(x, weight, bias, config)

    sizes = (x.dtype, *weight.shape)
    if rows == 1:
        return run(tuning.choose("row_product", sizes, candidates(*weight.shape), run))
    if x.element_size() != 2:  # Matrix units do not multiply float32 exactly.
        return vectorized.linear(x, weight, bias)
    sizes = (*sizes, tuning.bucket(rows))
    return run(tuning.choose("few_rows_product", sizes, FEW_ROWS, run))


def _one_row(x: Tensor, weight: Tensor, bias: Tensor | None, config: tuning.Config) -> Tensor:
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


def _few_rows(x: Tensor, weight: Tensor, bias: Tensor | None, config: tuning.Config) -> Tensor:
    (rows, inputs), outputs = x.shape, weight.shape[0]
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    block_t = power_of_two(rows, least=16)
    block_i, input_bytes = config["block_i"], (config["block_o"] + block_t) * x.itemsize
    while 3 * block_i * input_bytes > SHARED_BYTES:
        block_i //= 2
    launch(
        kernels.few_rows_product,
        (blocks(outputs, config["block_o"]),),
        x, x.stride(0), weight, weight.stride(0), bias, y, rows, outputs, inputs,
        DOT=OPERANDS[x.dtype], BLOCK_T=block_t, BLOCK_O=config["block_o"],
        BLOCK_I=block_i, num_warps=config["num_warps"],
        num_stages=stages_that_fit(config["num_stages"], block_i * input_bytes), **early(),
    )  # fmt: skip
    return y
