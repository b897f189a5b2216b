"""Causal depthwise convolution in torch: one multiply-add per tap, over all tokens at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sidewinder.state.batch import Sequences


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    seqs: Sequences,
    activation: bool = True,
) -> Tensor:
    """As `reference.causal_conv1d`."""
    taps = weight.float()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for part in seqs.single_tokens:
        history = state[seqs.sources[part]].masked_fill(seqs.fresh[part, None, None], 0)
        window = torch.cat([history, x[part, None].to(state.dtype)], dim=1)  # [n, K, C]
        y[part] = _finish((window.float() * taps).sum(1), bias, activation)
        state[seqs.slots[part]] = window[:, 1:]
    for s in range(seqs.n_decodes, seqs.n_seqs):
        rows = slice(seqs.bounds[s], seqs.bounds[s + 1])
        slot = seqs.slots[s : s + 1]
        history = state[seqs.sources[s : s + 1]].masked_fill(seqs.fresh[s], 0)[0]
        window = torch.cat([history, x[rows].to(state.dtype)])  # [K-1 + length, C]
        y[rows] = _finish(_convolve(window.float(), taps), bias, activation)
        state[slot] = window[None, window.shape[0] - history.shape[0] :]
    return y


def _convolve(window: Tensor, taps: Tensor) -> Tensor:
    """`[K-1 + L, C]` inputs and `[K, C]` taps to `[L, C]`."""
    length = window.shape[0] - taps.shape[0] + 1
    total = window[:length] * taps[0]
    for k in range(1, taps.shape[0]):
        total.addcmul_(window[k : k + length], taps[k])
    return total


def _finish(total: Tensor, bias: Tensor | None, activation: bool) -> Tensor:
    if bias is not None:
        total = total + bias.float()
    return F.silu(total) if activation else total
