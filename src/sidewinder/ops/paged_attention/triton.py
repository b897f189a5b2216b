"""Attention of single tokens over pages in Triton: by splits of the text, then joined."""

import torch
from torch import Tensor

from sidewinder.ops import tuning
from sidewinder.ops.launching import blocks, launch, power_of_two
from sidewinder.ops.paged_attention import kernels

CANDIDATES: tuple[tuning.Config, ...] = tuple(
    {"split": split, "block_n": block_n, "num_warps": warps}
    for split in (128, 256, 512)
    for block_n, warps in [(16, 4), (8, 4), (32, 8)]
)


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
    constants = {"SPLIT": config["split"], "BLOCK_E": power_of_two(width)}
    launch(
        kernels.attend_split,
        (n_seqs * heads, splits),
        q, q.stride(0), k, v, read, read.stride(0), lengths, scale, parts, largest, sums,
        heads, k.shape[1], width, splits,
        BLOCK_N=config["block_n"], num_warps=config["num_warps"], **constants,
    )  # fmt: skip
    launch(
        kernels.join_splits,
        (n_seqs * heads,),
        parts, largest, sums, lengths, y, heads, width, splits, **constants,
    )  # fmt: skip
