"""Linear map with weights in 8 or 4 bits on GPUs: one row; up to some hundreds by matrix units;
then torch.

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
from sidewinder.ops.linear import integer_kernels as kernels
from sidewinder.quantise import BLOCK, MANY_ROWS, SLICE_BYTES, QuantisedWeight

OPERANDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

LANE_BYTES, WARP = 16, 32
"""Bytes that a thread loads at once; threads."""

SHAPES = {
    8: ((2, 1, 1), (1, 1, 4), (4, 1, 1), (2, 1, 2), (1, 1, 2), (4, 1, 2), (2, 1, 4), (8, 1, 1)),
    4: ((8, 2, 1), (4, 1, 2), (4, 2, 1), (4, 1, 1), (4, 2, 2), (2, 1, 1), (2, 1, 4), (8, 2, 2)),
}
"""Of one row's product, by bits: outputs of a program; how many of them lie side by side in a tile,
so that a warp reads less of each row at a time; warps."""
ROW: dict[int, tuple[tuning.Config, ...]] = {
    bits: tuple(
        {"block_o": o, "block_i": WARP * warps // beside * LANE_BYTES * 8 // bits,
         "num_warps": warps}
        for o, beside, warps in shapes
    )
    for bits, shapes in SHAPES.items()
}  # fmt: skip

SLICES: tuning.Config = {"block_o": 0}
"""Stands for torch's product with slices that were widened before."""
TILES: tuple[tuning.Config, ...] = tuple(
    {"block_o": block_o, "block_t": block_t, "num_warps": warps, "num_stages": stages}
    for block_o, block_t, warps, stages in [
        (64, 32, 2, 4), (32, 32, 1, 6), (16, 32, 1, 8), (64, 64, 4, 3), (32, 32, 2, 6),
        (128, 64, 8, 3),
    ]
)  # fmt: skip
LARGE_TILES: tuple[tuning.Config, ...] = tuple(
    {"block_o": block_o, "block_t": block_t, "num_warps": warps, "num_stages": 3}
    for block_o, block_t, warps in [(64, 64, 4), (128, 64, 4), (128, 128, 8), (64, 128, 4)]
)
"""Of products by matrix units. Stages are how many tiles of a group of inputs are on their way."""

ROW_BYTES, LARGE_ROW_BYTES, LARGE_ROWS = 64, 32, {8: 64, 4: 32}
"""Of each output's row that a tile has at least: whole sectors of memory; fewer beside so many rows
of inputs, by bits, whose sums take the registers."""

FEW_ROWS = 64
"""Up to so many a product is bound by its weight's bytes. From `MANY_ROWS` on, moving a matrix once
more takes less time than tiles lose that are widened on the way."""


def linear(x: Tensor, weight: QuantisedWeight, bias: Tensor | None = None) -> Tensor:
    """As `reference.linear`."""
    assert x.stride(1) == weight.values.stride(1) == weight.scales.stride(1) == 1, "rows"
    (outputs, inputs), bits = weight.shape, weight.bits
    sizes: tuple[object, ...] = (x.dtype, outputs, inputs, weight.group_size)

    def run(config: tuning.Config) -> Tensor:
        if "block_i" in config:
            return _one_row(x, weight, bias, config)
        if config["block_o"] == SLICES["block_o"]:
            return _by_slices(x, weight, bias)
        return _by_tiles(x, weight, bias, config)

    if len(x) == 1:
        of_row = row_candidates(inputs, x.dtype, bits)
        return run(tuning.choose(f"int{bits}_row_product", sizes, of_row, run))
    of_rows = candidates(len(x), outputs, x.dtype)
    sizes = (*sizes, tuning.bucket(len(x)))
    return run(tuning.choose(f"int{bits}_product", sizes, of_rows, run))


def row_candidates(inputs: int, dtype: torch.dtype, bits: int) -> tuple[tuning.Config, ...]:
    """For one row of so many inputs; the default first: single warps, and several where a row has
    more than each of their threads should load one after the other. In 16 bits matrix units, too,
    which take fewer instructions for a weight."""
    first = ROW[bits][0] if inputs <= 4096 else ROW[bits][1]
    by_tiles = TILES[:2] if dtype != torch.float32 else ()
    return (first, *(config for config in ROW[bits] if config is not first), *by_tiles)


def candidates(rows: int, outputs: int, dtype: torch.dtype) -> tuple[tuning.Config, ...]:
    """For several rows; the default first.

    For float32 it is tiles for any number of rows: there a slice would be a float32 copy.
    """
    if rows <= FEW_ROWS:
        # Where wide blocks are too few for the card they are narrow.
        first = TILES[0] if blocks(outputs, TILES[0]["block_o"]) >= multiprocessors() else TILES[1]
        return (first, *(config for config in TILES if config is not first))
    if dtype == torch.float32:
        return LARGE_TILES[:1]
    return (SLICES, *LARGE_TILES) if rows >= MANY_ROWS else (*LARGE_TILES, SLICES)


def tile_groups(weight: QuantisedWeight, rows: int, dtype: torch.dtype) -> int:
    """Groups of inputs, of 4 bits blocks, that a tile of matrix units' products with so many rows
    has. In float32, which they do not multiply exactly, threads do, and have registers for one."""
    if dtype == torch.float32:
        return 1
    group_bytes = weight.group_size if weight.bits == 8 else BLOCK // 2
    row_bytes = LARGE_ROW_BYTES if rows >= LARGE_ROWS[weight.bits] else ROW_BYTES
    return max(1, row_bytes // group_bytes)


def _one_row(
    x: Tensor, weight: QuantisedWeight, bias: Tensor | None, config: tuning.Config
) -> Tensor:
    (outputs, inputs), bits = weight.shape, weight.bits
    y = torch.empty(1, outputs, dtype=x.dtype, device=x.device)
    block_o, block_i = config["block_o"], config["block_i"]
    assert block_i % weight.group_size == 0, "blocks have whole groups"
    beside = outputs_beside(block_i, config["num_warps"], bits)
    launch(
        kernels.integer_row_product,
        (blocks(outputs, block_o),),
        x, *_parts(weight), bias, y, outputs, inputs,
        GROUP=weight.group_size, BITS=bits, BLOCK_O=beside, EACH=max(1, block_o // beside),
        BLOCK_I=block_i, num_warps=config["num_warps"], **early(),
    )  # fmt: skip
    return y


def outputs_beside(block_i: int, warps: int, bits: int) -> int:
    """How many outputs lie side by side in a tile of so many inputs, with 16 bytes a thread."""
    return WARP * warps * LANE_BYTES * 8 // bits // block_i


def _by_tiles(
    x: Tensor, weight: QuantisedWeight, bias: Tensor | None, config: tuning.Config
) -> Tensor:
    (rows, inputs), outputs = x.shape, weight.shape[0]
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    block_t = power_of_two(rows, least=8, most=config["block_t"])
    groups = tile_groups(weight, block_t, x.dtype)
    block_i = groups * (weight.group_size if weight.bits == 8 else BLOCK)
    stage_bytes = config["block_o"] * block_i * weight.bits // 8 + block_t * block_i * x.itemsize
    launch(
        kernels.integer_product,
        (blocks(outputs, config["block_o"]), blocks(rows, block_t)),
        x, x.stride(0), *_parts(weight), bias, y, rows, outputs, inputs,
        GROUP=weight.group_size, BITS=weight.bits, GROUPS=groups, DOT=OPERANDS[x.dtype],
        BLOCK_T=block_t, BLOCK_O=config["block_o"], num_warps=config["num_warps"],
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
        (blocks(outputs, 4), blocks(weight.values.shape[1], 512)),
        *_parts(weight), wide, outputs, inputs,
        GROUP=weight.group_size, BITS=weight.bits, BLOCK_O=4, BLOCK_B=512, num_warps=4,
    )  # fmt: skip
    return wide


def _parts(weight: QuantisedWeight) -> tuple[Tensor, int, Tensor, int]:
    values, scales = weight.values, weight.scales
    return values, values.stride(0), scales, scales.stride(0)
