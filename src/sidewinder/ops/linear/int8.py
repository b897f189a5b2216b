"""Linear map with int8 weights on GPUs: one row; up to some hundreds by matrix units; then torch.

Nothing makes a copy of a whole matrix in float32: kernels widen what they have loaded, and before
torch's products the matrix is widened in slices of outputs, to the inputs' 16 bits.
"""

import torch
import triton.language as tl
from torch import Tensor

from sidewinder.ops import tuning
from sidewinder.ops.launching import (
    blocks,
    early,
    launch,
    multiprocessors,
    power_of_two,
    stages_that_fit,
)
from sidewinder.ops.linear import int8_kernels as kernels
from sidewinder.quantise import MANY_ROWS, SLICE_BYTES, QuantisedWeight

OPERANDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

ROW: tuple[tuning.Config, ...] = tuple(
    {"block_o": block_o, "block_i": 512 * warps, "num_warps": warps}
    for block_o, warps in [(2, 1), (1, 4), (4, 1), (2, 2), (1, 2), (1, 1), (2, 4), (8, 1), (1, 8)]
)
"""Block sizes of one row's product: a thread has 16 weights of each output at a time."""

SLICES: tuning.Config = {"block_o": 0}
"""Stands for torch's product with slices that were widened before."""
TILES: tuple[tuning.Config, ...] = tuple(
    {"block_o": block_o, "block_t": 64, "num_warps": 4, "num_stages": stages}
    for block_o, stages in [(32, 6), (16, 8), (64, 4), (32, 8), (64, 6), (16, 6)]
)
LARGE_TILES: tuple[tuning.Config, ...] = tuple(
    {"block_o": block_o, "block_t": block_t, "num_warps": warps, "num_stages": 3}
    for block_o, block_t, warps in [(64, 64, 4), (128, 64, 4), (128, 128, 8), (64, 128, 4)]
)
"""Of products by matrix units. Stages are how many tiles of a group of inputs are on their way."""

FEW_ROWS = 64
"""Up to so many a product is bound by its weight's bytes. From `MANY_ROWS` on, moving a matrix once
more takes less time than tiles lose that are widened on the way."""


def linear(x: Tensor, weight: QuantisedWeight, bias: Tensor | None = None) -> Tensor:
    """As `reference.linear`."""
    assert x.stride(1) == weight.values.stride(1) == weight.scales.stride(1) == 1, "rows"
    outputs, inputs = weight.shape
    sizes = (x.dtype, outputs, inputs, weight.group_size)

    def run(config: tuning.Config) -> Tensor:
        if "block_i" in config:
            return _one_row(x, weight, bias, config)
        if config["block_o"] == SLICES["block_o"]:
            return _by_slices(x, weight, bias)
        return _by_tiles(x, weight, bias, config)

    if len(x) == 1:
        return run(tuning.choose("int8_row_product", sizes, row_candidates(inputs, x.dtype), run))
    of_rows = candidates(len(x), outputs, x.dtype)
    return run(tuning.choose("int8_product", (*sizes, tuning.bucket(len(x))), of_rows, run))


def row_candidates(inputs: int, dtype: torch.dtype) -> tuple[tuning.Config, ...]:
    """For one row of so many inputs; the default first: single warps, and several where a row has
    more than each of their threads should load one after the other. In 16 bits matrix units, too,
    which take fewer instructions for a weight."""
    first = ROW[0] if inputs <= 4096 else ROW[1]
    by_tiles = TILES[:2] if dtype != torch.float32 else ()
    return (first, *(config for config in ROW if config is not first), *by_tiles)


def candidates(rows: int, outputs: int, dtype: torch.dtype) -> tuple[tuning.Config, ...]:
    """For several rows; the default first.

    For float32 it is tiles for any number of rows: there a slice would be a float32 copy.
    """
    if rows <= FEW_ROWS:
        # Where wide blocks are too few for the card they are narrow.
        first = TILES[0] if blocks(outputs, 32) >= multiprocessors() else TILES[1]
        return (first, *(config for config in TILES if config is not first))
    if dtype == torch.float32:
        return LARGE_TILES[:1]
    return (SLICES, *LARGE_TILES) if rows >= MANY_ROWS else (*LARGE_TILES, SLICES)


def _one_row(
    x: Tensor, weight: QuantisedWeight, bias: Tensor | None, config: tuning.Config
) -> Tensor:
    outputs, inputs = weight.shape
    y = torch.empty(1, outputs, dtype=x.dtype, device=x.device)
    assert config["block_i"] % weight.group_size == 0, "blocks have whole groups"
    launch(
        kernels.int8_row_product,
        (blocks(outputs, config["block_o"]),),
        x, *_parts(weight), bias, y, outputs, inputs,
        GROUP=weight.group_size, BLOCK_O=config["block_o"], BLOCK_I=config["block_i"],
        num_warps=config["num_warps"], **early(),
    )  # fmt: skip
    return y


def _by_tiles(
    x: Tensor, weight: QuantisedWeight, bias: Tensor | None, config: tuning.Config
) -> Tensor:
    (rows, inputs), outputs = x.shape, weight.shape[0]
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    block_t = power_of_two(rows, least=16, most=config["block_t"])
    stage_bytes = weight.group_size * (config["block_o"] + block_t * x.itemsize)
    launch(
        kernels.int8_product,
        (blocks(outputs, config["block_o"]), blocks(rows, block_t)),
        x, x.stride(0), *_parts(weight), bias, y, rows, outputs, inputs,
        GROUP=weight.group_size, DOT=OPERANDS[x.dtype], BLOCK_T=block_t,
        BLOCK_O=config["block_o"], num_warps=config["num_warps"],
        num_stages=stages_that_fit(config["num_stages"], stage_bytes), **early(),
    )  # fmt: skip
    return y


def _by_slices(x: Tensor, weight: QuantisedWeight, bias: Tensor | None) -> Tensor:
    """torch's product with some outputs at a time, widened into memory that the next ones reuse."""
    outputs, inputs = weight.shape
    y = torch.empty(len(x), outputs, dtype=x.dtype, device=x.device)
    each = max(1, SLICE_BYTES // (inputs * x.itemsize))
    for start in range(0, outputs, each):
        some = slice(start, start + each)
        wide, part = widened(weight[some], x.dtype), y[:, some]
        if bias is None:
            torch.mm(x, wide.T, out=part)
        else:
            torch.addmm(bias[some], x, wide.T, out=part)
        del wide  # Before the next one is made: one at a time is there.
    return y


def widened(weight: QuantisedWeight, dtype: torch.dtype) -> Tensor:
    """`weight.dequantise()`, rounded to `dtype`."""
    outputs, inputs = weight.shape
    wide = torch.empty(outputs, inputs, dtype=dtype, device=weight.values.device)
    launch(
        kernels.dequantise,
        (blocks(outputs, 4), blocks(inputs, 512)),
        *_parts(weight), wide, outputs, inputs,
        GROUP=weight.group_size, BLOCK_O=4, BLOCK_I=512, num_warps=4,
    )  # fmt: skip
    return wide


def _parts(weight: QuantisedWeight) -> tuple[Tensor, int, Tensor, int]:
    values, scales = weight.values, weight.scales
    return values, values.stride(0), scales, scales.stride(0)
