"""Attention of prompts by torch's own, sequence by sequence, over copies of keys and values."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sidewinder.ops.prompt_attention.reference import LENGTHS_ARE_UNKNOWN
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.prompt_index import PromptIndex


def prompt_attention(
    q: Tensor, k: Tensor, v: Tensor, index: KVIndex | PromptIndex, scale: float
) -> Tensor:
    """As `reference.prompt_attention`."""
    assert isinstance(index, KVIndex), LENGTHS_ARE_UNKNOWN
    return torch.cat(_sequences(q, k, v, index, scale)).view(q.shape)


def prompts(q: Tensor, k: Tensor, v: Tensor, index: KVIndex | PromptIndex, scale: float) -> Tensor:
    """The operator's result but for the leading single tokens, whose rows hold anything."""
    assert isinstance(index, KVIndex), LENGTHS_ARE_UNKNOWN
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    found = _sequences(q, k, v, index, scale, first=index.n_singles)
    torch.cat(found, out=y[index.n_singles :].flatten(1))
    return y


def _sequences(
    q: Tensor, k: Tensor, v: Tensor, index: KVIndex, scale: float, first: int = 0
) -> list[Tensor]:
    """The rows of each sequence from number `first` on, `[new, H * E]` each."""
    bounds = index.bounds[first:]
    return [
        _attend(q[start:stop], k[places], v[places], scale)
        for start, stop, places in zip(bounds[:-1], bounds[1:], index.read[first:], strict=True)
    ]


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One sequence: its last `len(q)` tokens over all of its `len(k)` tokens; `[new, H * E]`."""
    new, total = q.shape[0], k.shape[0]
    mask = None
    if 1 < new < total:
        mask = torch.ones(new, total, dtype=torch.bool, device=q.device).tril(total - new)
        # On GPUs no kernel of torch's takes both a mask and a key head of several query heads: all
        # scores would be in memory, 16 GiB for 8,192 tokens behind as many, with 32 heads.
        repeats = q.shape[1] // k.shape[1]
        k, v = (part.repeat_interleave(repeats, dim=1) for part in (k, v))
    attended = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=1 < new == total,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended[0].transpose(0, 1).flatten(1)
