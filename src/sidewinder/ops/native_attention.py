"""Attention in C++, as `native.py` has the other operators: wrappers that allocate the outputs."""

import functools

import torch
from torch import Tensor

from sidewinder.extension import module as _native
from sidewinder.ops.paged_attention import paged_attention as paged_attention_operator
from sidewinder.ops.paged_attention import vectorized as torch_paged_attention
from sidewinder.ops.prompt_attention import prompt_attention as prompt_attention_operator
from sidewinder.ops.prompt_attention import vectorized as torch_prompt_attention
from sidewinder.ops.prompt_attention.singles import behind_singles
from sidewinder.ops.rotary import rotary as rotary_operator
from sidewinder.ops.rotary import vectorized as torch_rotary
from sidewinder.ops.store_kv import store_kv as store_kv_operator
from sidewinder.ops.store_kv import vectorized as torch_store_kv
from sidewinder.ops.workspace import empty
from sidewinder.state.kv_index import KVIndex
from sidewinder.state.prompt_index import PromptIndex


def rotary(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> None:
    """As `reference.rotary`."""
    if _attends(q):
        _native.rotary(q, k, positions.contiguous(), frequencies)
    else:
        torch_rotary.rotary(q, k, positions, frequencies)


def store_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> None:
    """As `reference.store_kv`."""
    if _attends(k):
        _native.store_kv(k, v, keys, values, places)
    else:
        torch_store_kv.store_kv(k, v, keys, values, places)


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, read: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """As `reference.paged_attention`."""
    if not _attends(q):
        return torch_paged_attention.paged_attention(q, k, v, read, lengths, scale)
    y = empty(q.shape, q.dtype)
    _native.paged_attention(q, k, v, read, lengths, scale, y)
    return y


def prompt_attention(
    q: Tensor, k: Tensor, v: Tensor, index: KVIndex | PromptIndex, scale: float
) -> Tensor:
    """As `reference.prompt_attention`: single tokens by our kernel, prompts by torch's."""
    if not _attends(q):
        return torch_prompt_attention.prompt_attention(q, k, v, index, scale)
    prompts = functools.partial(torch_prompt_attention.prompts, q, k, v, index, scale)
    return behind_singles(q, k, v, index, scale, paged_attention, prompts)


def _attends(q: Tensor) -> bool:
    return q.is_cpu and q.dtype in (torch.float32, torch.bfloat16)


def register() -> None:
    """Make these the operators' native implementations."""
    rotary_operator.register("native", rotary)
    store_kv_operator.register("native", store_kv)
    paged_attention_operator.register("native", paged_attention)
    prompt_attention_operator.register("native", prompt_attention)
