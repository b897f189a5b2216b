"""Storing a step's keys and values into pages in Triton: one kernel for both."""

from torch import Tensor

from sidewinder.ops.launching import blocks, launch, power_of_two
from sidewinder.ops.store_kv import kernels

BLOCK = 1024
"""Numbers of a program, 8 a thread."""


def store_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> None:
    """As `reference.store_kv`."""
    for part in (k, v, keys, values):
        assert part[0].is_contiguous(), "rows are contiguous"
    assert keys.is_contiguous(), "keys are contiguous"
    assert values.is_contiguous(), "values are contiguous"
    assert places.stride(0) == 1, "places are contiguous"
    width = k[0].numel()
    block = power_of_two(width, most=BLOCK)
    launch(
        kernels.store_rows,
        (k.shape[0], blocks(width, block)),
        k, k.stride(0), v, v.stride(0), keys, values, places, width, BLOCK=block, num_warps=4,
    )  # fmt: skip
