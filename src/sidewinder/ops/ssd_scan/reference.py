"""Mamba-2's scan (state-space duality) over packed sequences: the definition.

Symbols (Mamba-2 paper): as Mamba-1, but the decay `A` is one number per head, and `B`, `C` are
shared by the heads of a group. `T` tokens, `H` heads of this rank, `P = head_dim`, `N = d_state`,
`G` groups present on this rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sidewinder.state.batch import Sequences


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    seqs: Sequences,
    dt_limit: tuple[float, float],
    head_group: Tensor,
) -> Tensor:
    """Run the recurrence of every sequence from and into its slot.

    With `Δ = clamp(softplus(dt + dt_bias), *dt_limit)` and `g = head_group[h]`, per head h:
        `S[h, n, p] = exp(Δ[h] A[h]) S[h, n, p] + Δ[h] B[g, n] x[h, p]`
        `y[h, p] = sum_n C[g, n] S[h, n, p] + D[h] x[h, p]`

    Args:
        x: `[T, H, P]`.
        dt: `[T, H]`, before bias and softplus.
        A, D, dt_bias: `[H]` float32; A negative.
        B, C: `[T, G, N]`.
        state: `[n_slots, H, N, P]` float32 or bfloat16, updated in place at `seqs.slots` only;
            counts as zero where a sequence is fresh. Rounded only when stored.
        seqs: boundaries, slots, the slots that sequences go on from, and freshness.
        dt_limit: smallest and largest Δ (the latter may be infinite).
        head_group: int64 `[H]`, the index into `B` and `C` that each head uses.

    The rows of `x, dt, B, C` may be strided (column slices of wider tensors); within a row they are
    contiguous.

    Returns:
        `[T, H, P]`, contiguous, in x's dtype. All arithmetic is float32.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for s in range(seqs.n_seqs):
        slot, source = int(seqs.slots[s]), int(seqs.sources[s])
        h = state[source].float()
        if seqs.fresh[s]:
            h = torch.zeros_like(h)
        for t in range(seqs.bounds[s], seqs.bounds[s + 1]):
            x_t = x[t].float()
            delta = F.softplus(dt[t].float() + dt_bias).clamp(*dt_limit)
            B_t, C_t = B[t].float()[head_group], C[t].float()[head_group]  # [H, N]
            decay = torch.exp(delta * A)
            h = decay[:, None, None] * h + B_t[:, :, None] * (delta[:, None] * x_t)[:, None, :]
            y[t] = (C_t[:, :, None] * h).sum(1) + D[:, None] * x_t
        state[slot] = h.to(state.dtype)
    return y
