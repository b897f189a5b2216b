"""Attention of single tokens by torch's own, over copies of all keys and values read."""

import torch
import torch.nn.functional as F
from torch import Tensor


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, read: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """As `reference.paged_attention`; nothing depends on values on the device."""
    counts = torch.arange(read.shape[1], device=read.device) < lengths[:, None]
    # Beyond the length: the first token's place, which holds something finite.
    places = torch.where(counts, read, read[:, :1])
    # A column slice may start anywhere; torch's kernels for GPUs want rows that are aligned.
    queries = q if q.device.type == "cpu" else q.clone(memory_format=torch.contiguous_format)
    attended = F.scaled_dot_product_attention(
        queries[:, :, None],
        k[places].transpose(1, 2),
        v[places].transpose(1, 2),
        attn_mask=counts[:, None, None],
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended[:, :, 0]
