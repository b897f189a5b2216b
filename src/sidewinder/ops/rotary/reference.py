"""Rotary position embeddings (Su et al. 2021): the definition."""

import torch
from torch import Tensor


def rotary(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> None:
    """Turn the first `2 n` channels of every head of row t: `j` and `j + n`, a pair, by the angle
    `positions[t] * frequencies[j]`.

    The angle is rounded to float32, as models were trained: far into a text more digits would be
    another angle. Its cosine and sine are precise however large it is.

    Args:
        q: `[T, H, E]`, written in place; rows contiguous, and may be apart.
        k: `[T, kv_heads, E]` likewise, in q's dtype.
        positions: int64 `[T]` of each row in its text, below 2^24, so that float32 holds them; may
            be a column.
        frequencies: float32 `[n]`, contiguous, none above 1; `2 n` is at most E.

    Arithmetic is float32, rounded once.
    """
    n = len(frequencies)
    for t, position in enumerate(positions.float()):
        angles = (position * frequencies).double()
        cos, sin = angles.cos().float(), angles.sin().float()
        for heads in (q, k):
            first, second = heads[t, :, :n].float(), heads[t, :, n : 2 * n].float()
            turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
            heads[t, :, : 2 * n] = turned.to(heads.dtype)
