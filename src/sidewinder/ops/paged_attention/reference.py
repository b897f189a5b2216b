"""Attention of single tokens over keys and values in pages: the definition."""

import torch
from torch import Tensor


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, read: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """One new token of each sequence over all tokens of the sequence, itself included.

    `y[s, h] = sum_t softmax_t(scale * q[s, h]·k_t) v_t` with t over the first `lengths[s]` places
    of `read[s]`, and keys and values of head `h // (H / kv_heads)`.

    Args:
        q: `[S, H, E]`.
        k, v: `[places, kv_heads, E]`, contiguous: all pages end to end.
        read: int64 `[S, L]`, the places of each sequence's tokens; those beyond its length are
            not read.
        lengths: int64 `[S]`, from 1 to L.
        scale: of the scores.

    Returns:
        `[S, H, E]` in q's dtype. Arithmetic is float32.
    """
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    repeats = q.shape[1] // k.shape[1]
    for s in range(q.shape[0]):
        places = read[s, : int(lengths[s])]
        keys = k[places].float().repeat_interleave(repeats, dim=1)  # [t, H, E]
        values = v[places].float().repeat_interleave(repeats, dim=1)
        weights = torch.softmax(scale * (q[s].float() * keys).sum(-1), dim=0)
        y[s] = (weights[..., None] * values).sum(0)
    return y
