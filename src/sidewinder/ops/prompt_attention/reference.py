"""Attention of prompts over keys and values in pages: the definition."""

import torch
from torch import Tensor

from sidewinder.state.kv_index import KVIndex
from sidewinder.state.prompt_index import PromptIndex

LENGTHS_ARE_UNKNOWN = "only Triton's kernels read lengths on the device"


def prompt_attention(
    q: Tensor, k: Tensor, v: Tensor, index: KVIndex | PromptIndex, scale: float
) -> Tensor:
    """The new tokens of each sequence, each over all tokens of its sequence up to itself.

    `y[i, h] = sum_t softmax_t(scale * q[i, h]·k_t) v_t` (Vaswani et al. 2017, section 3.2.1). The
    rows of sequence `s` are the last tokens of `index.read[s]`; t goes over that sequence's tokens
    from the first to row i's own, with keys and values of head `h // (H / kv_heads)`.

    Args:
        q: `[T, H, E]`, the batch's rows: sequences of one new token first.
        k, v: `[places, kv_heads, E]`, contiguous: all pages end to end, the batch's own included.
            What no sequence has written there may be anything.
        index: where each sequence's tokens are; `PromptIndex` is for Triton's kernels only.
        scale: of the scores.

    Returns:
        `[T, H, E]` in q's dtype, contiguous. Arithmetic is float32.
    """
    assert isinstance(index, KVIndex), LENGTHS_ARE_UNKNOWN
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    repeats = q.shape[1] // k.shape[1]
    for start, stop, places in zip(index.bounds[:-1], index.bounds[1:], index.read, strict=True):
        keys = k[places].float().repeat_interleave(repeats, dim=1)  # [t, H, E]
        values = v[places].float().repeat_interleave(repeats, dim=1)
        for i in range(start, stop):
            seen = len(places) - (stop - 1 - i)
            weights = torch.softmax(scale * (q[i].float() * keys[:seen]).sum(-1), dim=0)
            y[i] = (weights[..., None] * values[:seen]).sum(0)
    return y
