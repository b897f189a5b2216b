"""Attention of prompts on GPUs: torch's own, or two kernels in Triton that read pages in place.

torch's runs until `ops.tuning` has measured ours to be the faster: no card has run them yet. In
steps of a fixed shape ours run. Single tokens in a step with prompts are `paged_attention`'s.
"""

from functools import partial

import torch
import triton.language as tl
from torch import Tensor

from sidewinder.ops import tuning
from sidewinder.ops.launching import blocks, launch
from sidewinder.ops.paged_attention.triton import paged_attention
from sidewinder.ops.prompt_attention import kernels, reads_lengths, vectorized
from sidewinder.ops.prompt_attention.singles import behind_singles
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.prompt_index import PromptIndex

OPERANDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
WEIGHTS_BYTES = 256 << 20
"""Memory for the weights of so many blocks as are worked on together; one block always is."""

TORCH: tuning.Config = {"rows": 0}
"""Stands for torch's own."""


def _config(
    block_n: int, block_e: int, weigh_stages: int, block_t: int, block_v: int, average_stages: int
) -> tuning.Config:
    """With 128 rows and 8 warps, of which each four multiply 64 rows."""
    return {
        "rows": 128, "num_warps": 8,
        "block_n": block_n, "block_e": block_e, "weigh_stages": weigh_stages,
        "block_t": block_t, "block_v": block_v, "average_stages": average_stages,
    }  # fmt: skip


SMALL: tuple[tuning.Config, ...] = (
    _config(128, 32, 4, 32, 128, 4),
    _config(256, 32, 4, 32, 256, 4),
    _config(128, 32, 4, 64, 128, 3),
)
"""Fit into the shared memory of workstation cards; with all registers of none are spilled, there
either."""
LARGE: tuple[tuning.Config, ...] = (
    _config(256, 64, 3, 64, 256, 3),
    _config(256, 64, 3, 64, 256, 4),
    _config(128, 64, 3, 64, 256, 3),
    _config(256, 64, 3, 64, 128, 3),
    _config(128, 64, 3, 64, 128, 3),
    _config(256, 32, 4, 64, 256, 3),
)
"""For Hopper's shared memory and matrix units."""
CANDIDATES: tuple[tuning.Config, ...] = (TORCH, *LARGE, *SMALL)
OURS: tuple[tuning.Config, ...] = (*SMALL, *LARGE)
"""For steps of a fixed shape, whose lengths torch's cannot read."""


def prompt_attention(
    q: Tensor, k: Tensor, v: Tensor, index: KVIndex | PromptIndex, scale: float
) -> Tensor:
    """As `reference.prompt_attention`."""
    assert q[0].is_contiguous(), "heads are contiguous"
    assert k.is_contiguous(), "keys are contiguous"
    assert v.is_contiguous(), "values are contiguous"
    prompts = partial(_prompts, q, k, v, index, scale)
    return behind_singles(q, k, v, index, scale, paged_attention, prompts)


def _prompts(q: Tensor, k: Tensor, v: Tensor, index: KVIndex | PromptIndex, scale: float) -> Tensor:
    """`[T, H, E]`, in which the rows of the leading single tokens hold nothing."""

    def run(config: tuning.Config) -> Tensor:
        if config["rows"] == TORCH["rows"]:
            return vectorized.prompts(q, k, v, index, scale)
        y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        _run(q, k, v, index, scale, y, config)
        return y

    if not reads_lengths(q.dtype):
        return run(TORCH)
    sizes = (q.dtype, *q.shape[1:], k.shape[1])
    if isinstance(index, PromptIndex):  # Of all shapes alike: steps have many of them.
        return run(tuning.choose("prompt_attention_fixed", sizes, OURS, run))
    sizes = (*sizes, tuning.bucket(index.prompt_rows))
    return run(tuning.choose("prompt_attention", sizes, CANDIDATES, run))


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: KVIndex | PromptIndex,
    scale: float,
    y: Tensor,
    config: tuning.Config,
) -> None:
    """As many blocks of rows at once as the memory for their weights allows."""
    (_, heads, width), kv_heads = q.shape, k.shape[1]
    rows, block_n = config["rows"], config["block_n"]
    assert block_n % config["block_t"] == 0, "a step is within one tile"
    found = index.blocks(rows)
    constants = {"DOT": OPERANDS[q.dtype], "ROWS": rows, "BLOCK_N": block_n}
    number = 0
    while number < len(found.keys):
        tiles = blocks(found.keys[number], block_n)  # No later block sees more.
        each = heads * rows * tiles * block_n * q.element_size()
        n = min(max(1, WEIGHTS_BYTES // each), len(found.keys) - number)
        weights = torch.empty(n, heads, tiles, rows, block_n, dtype=q.dtype, device=q.device)
        largest = torch.empty(n, heads, tiles, rows, dtype=torch.float32, device=q.device)
        sums = torch.empty_like(largest)
        launch(
            kernels.weigh,
            (n * tiles, heads),
            q, q.stride(0), k, index.places, found.table, scale, weights, largest, sums,
            heads, kv_heads, width, number, tiles, BLOCK_E=config["block_e"],
            num_warps=config["num_warps"], num_stages=config["weigh_stages"], **constants,
        )  # fmt: skip
        launch(
            kernels.average,
            (n * blocks(width, config["block_v"]), heads),
            weights, largest, sums, v, index.places, found.table, y,
            heads, kv_heads, width, number, tiles,
            BLOCK_T=config["block_t"], BLOCK_E=config["block_v"],
            num_warps=config["num_warps"], num_stages=config["average_stages"], **constants,
        )  # fmt: skip
        number += n
        del weights, largest, sums  # Before the next ones are made: one set at a time is there.
