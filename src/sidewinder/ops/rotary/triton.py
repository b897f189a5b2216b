"""Rotary position embeddings in Triton: one kernel for queries and keys, angles included."""

from torch import Tensor

from sidewinder.ops.launching import blocks, early, launch, power_of_two
from sidewinder.ops.rotary import kernels

PAIRS, BLOCK = 128, 512
"""Most pairs of a program, and pairs of all its heads: 4 a thread, 8 numbers."""


def rotary(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> None:
    """As `reference.rotary`."""
    for part in (q, k):
        assert part[0].is_contiguous(), "rows are contiguous"
    assert frequencies.stride(0) == 1, "frequencies are contiguous"
    (rows, heads, width), kv_heads, pairs = q.shape, k.shape[1], len(frequencies)
    block_j = power_of_two(pairs, most=PAIRS)
    block_h = power_of_two(max(heads, kv_heads), most=BLOCK // block_j)
    launch(
        kernels.turn,
        (rows, blocks(heads, block_h) + blocks(kv_heads, block_h), blocks(pairs, block_j)),
        q, q.stride(0), heads, k, k.stride(0), kv_heads,
        positions, positions.stride(0), frequencies, width, pairs,
        BLOCK_H=block_h, BLOCK_J=block_j, num_warps=4, **early(),
    )  # fmt: skip
