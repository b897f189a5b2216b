"""Calls of operators in Triton with chains of drafts, at the shapes of published models."""

import torch

from sidewinder.ops.causal_conv1d.triton import causal_conv1d
from sidewinder.ops.projected_scan.triton import projected_scan
from sidewinder.ops.selective_scan.triton import selective_scan
from sidewinder.ops.ssd_scan.triton import ssd_scan
from sidewinder.state.batch import pack

ROWS = 9
SEQS = pack([[0]] * ROWS, list(range(ROWS)), [1] * ROWS, chains=(0, 5, ROWS)).seqs


def chains(dtype: torch.dtype, state_dtype: torch.dtype = torch.float32) -> None:
    """All operators; sizes of mamba-2.8b, falcon-mamba-7b's norms, mamba2-2.7b."""
    width, n, rank = 5120, 16, 160
    x, b = torch.empty(ROWS, width, dtype=dtype), torch.empty(ROWS, n, dtype=dtype)
    A, vector = torch.empty(n, width), torch.empty(width)
    bias, state = torch.empty(width, dtype=dtype), torch.empty(ROWS, 3, width, dtype=dtype)
    causal_conv1d(x, torch.empty(4, width, dtype=dtype), bias, state, SEQS)
    causal_conv1d(x, torch.empty(2, width, dtype=dtype), None, state[:, :1], SEQS, activation=False)
    state = torch.empty(ROWS, n, width, dtype=state_dtype)
    for z, bias in ((x, vector), (None, None)):
        selective_scan(x, x, A, b, b, vector, z, bias, state, SEQS)
    low, weight = (torch.empty(k, rank + 2 * n, dtype=dtype) for k in (ROWS, width))
    for eps, gain in ((None, None), (1e-6, None), (1e-6, low[0])):
        projected_scan(x, low, weight[:, :rank], eps, gain, A, vector, x, vector, state, SEQS)
    heads, n, p = 80, 128, 64
    x, b = torch.empty(ROWS, heads, p, dtype=dtype), torch.empty(ROWS, 1, n, dtype=dtype)
    state, vector = torch.empty(ROWS, heads, n, p, dtype=state_dtype), torch.empty(heads)
    ssd_scan(
        x, x[:, :, 0].contiguous(), vector, b, b, vector, vector, state, SEQS,
        (0.0, float("inf")), torch.zeros(heads, dtype=torch.int64),
    )  # fmt: skip


def chains_of_one_channel(dtype: torch.dtype) -> None:
    """Integers that are 1 become constants of the compiled kernel."""
    one, vector = torch.empty(ROWS, 1, dtype=dtype), torch.empty(1)
    causal_conv1d(one, torch.empty(1, 1), vector, torch.empty(ROWS, 0, 1), SEQS)
    state, A = torch.empty(ROWS, 1, 1), torch.empty(1, 1)
    selective_scan(one, one, A, one, one, vector, one, vector, state, SEQS)
    low = torch.empty(ROWS, 3, dtype=dtype)
    projected_scan(one, low, one[:1], 1e-6, None, A, vector, one, vector, state, SEQS)
    cube, group = one[:, :, None], torch.zeros(1, dtype=torch.int64)
    numbers = (vector, vector, state[:, :, None])
    ssd_scan(cube, one, vector, cube, cube, *numbers, SEQS, (0.0, 1.0), group)
