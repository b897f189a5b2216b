"""Attention of single tokens over pages in Triton: by splits of the text, then joined."""

import torch
from torch import Tensor

from sidewinder.ops import tuning
from sidewinder.ops.launching import blocks, launch, power_of_two
from sidewinder.ops.paged_attention import kernels

CANDIDATES: tuple[tuning.Config, ...] = tuple(
    {"split": split, "tile": tile, "num_warps": 1}
    for split, tile in [
        (64, 2048), (128, 2048), (32, 2048), (256, 2048), (64, 1024), (128, 1024),
    ]
)  # fmt: skip
"""Tokens of a split, and numbers of a tile of keys. A program is one warp: nothing is exchanged."""
WARP_LOADS_BYTES = 512
"""What the threads of a warp load at once, 16 bytes each."""
JOINED_NUMBERS = 8192
"""Of the splits that are joined at once."""


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, read: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """As `reference.paged_attention`; the number of splits follows from L alone."""
    assert q[0].is_contiguous(), "heads are contiguous"
    assert k.is_contiguous(), "keys are contiguous"
    assert v.is_contiguous(), "values are contiguous"
    assert read.stride(1) == lengths.stride(0) == 1, "places and lengths are contiguous"
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    sizes = (q.dtype, *q.shape[1:], k.shape[1], tuning.bucket(q.shape[0]), read.shape[1])

    def run(config: tuning.Config) -> None:
        _run(q, k, v, read, lengths, scale, y, config)

    run(tuning.choose("paged_attention", sizes, CANDIDATES, run))
    return y


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    read: Tensor,
    lengths: Tensor,
    scale: float,
    y: Tensor,
    config: tuning.Config,
) -> None:
    n_seqs, heads, width = q.shape
    splits = blocks(read.shape[1], config["split"])
    parts = torch.empty(n_seqs, heads, splits, width, dtype=torch.float32, device=q.device)
    largest = torch.empty(n_seqs, heads, splits, dtype=torch.float32, device=q.device)
    sums = torch.empty_like(largest)
    padded = power_of_two(width)
    part = min(padded, WARP_LOADS_BYTES // k.element_size())
    launch(
        kernels.attend_split,
        (n_seqs * heads, splits),
        q, q.stride(0), k, v, read, read.stride(0), lengths, scale, parts, largest, sums,
        heads, k.shape[1], width, splits, SPLIT=config["split"],
        BLOCK_N=max(1, config["tile"] // padded), PART=part, PARTS=padded // part,
        num_warps=config["num_warps"],
    )  # fmt: skip
    launch(
        kernels.join_splits,
        (n_seqs * heads,),
        parts, largest, sums, lengths, y, heads, width, splits,
        SPLIT=config["split"], BLOCK_E=padded, BLOCK_J=max(1, JOINED_NUMBERS // padded),
    )  # fmt: skip
