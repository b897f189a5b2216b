"""Rotary position embeddings in torch."""

import torch
from torch import Tensor


def rotary(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> None:
    """As `reference.rotary`."""
    n = len(frequencies)
    angles = positions[:, None, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    for heads in (q, k):
        first, second = heads[..., :n].float(), heads[..., n : 2 * n].float()
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        heads[..., : 2 * n] = turned
