"""Causal depthwise convolution over packed sequences: the definition."""

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
    """`y[t, c] = silu(bias[c] + sum_k weight[k, c] * x[t - (K-1) + k, c])` within each sequence.

    The K-1 inputs before a sequence's first token come from its slot (oldest first), or count as
    zero where it is fresh; its last K-1 inputs are left there.

    Args:
        x: `[T, C]`, tokens of all sequences end to end; may be a column slice (row stride ≥ C).
        weight: `[K, C]`; `weight[K-1]` multiplies the token itself.
        bias: `[C]` or None.
        state: `[n_slots, K-1, C]`, updated in place at `seqs.slots` only; channels contiguous.
        seqs: boundaries, slots, the slots that sequences go on from, and freshness.
        activation: apply SiLU.

    Returns:
        `[T, C]`, contiguous, in x's dtype. The sum is float32.
    """
    taps = weight.shape[0]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for s in range(seqs.n_seqs):
        slot, source = int(seqs.slots[s]), int(seqs.sources[s])
        window = torch.zeros(taps, x.shape[1], device=x.device)
        if not seqs.fresh[s]:
            window[1:] = state[source].float()
        for t in range(seqs.bounds[s], seqs.bounds[s + 1]):
            window = torch.cat([window[1:], x[t : t + 1].float()])
            total = (weight.float() * window).sum(0)
            if bias is not None:
                total = total + bias.float()
            y[t] = F.silu(total) if activation else total
        state[slot] = window[1:].to(state.dtype)
    return y
