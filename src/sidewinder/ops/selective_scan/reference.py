"""Mamba-1's selective scan over packed sequences: the definition.

Symbols (Mamba paper, section 3): `x` input, `dt` step size Δ, `A` decay rates, `B` input and `C`
output projections of the state, `D` skip, `z` gate. `T` tokens, `D` channels of this rank,
`N = d_state`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sidewinder.state.batch import Sequences


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    seqs: Sequences,
    out: Tensor | None = None,
) -> Tensor:
    """Run the recurrence of every sequence from and into its slot.

    With `Δ = softplus(dt + dt_bias)`, per channel d and state n:
        `h[n, d] = exp(Δ[d] A[n, d]) h[n, d] + Δ[d] B[n] x[d]`
        `y[d] = (sum_n C[n] h[n, d] + D[d] x[d]) * silu(z[d])`

    Args:
        x, dt, z: `[T, D]`; z may be None (no gate). dt is before bias and softplus.
        A: `[N, D]` float32, negative.
        B, C: `[T, N]`.
        D, dt_bias: `[D]` float32; dt_bias may be None.
        state: `[n_slots, N, D]` float32 or bfloat16, updated in place at `seqs.slots` only; counts
            as zero where a sequence is fresh. Rounded only when stored.
        seqs: boundaries, slots, the slots that sequences go on from, and freshness.
        out: where the result goes, `[T, D]` in x's dtype; new memory if None.

    The last dimension of every argument is contiguous; the others may be strided (slices of wider
    tensors: Zamba's heads are channel slices of `x, dt, A, z, state, out`).

    Returns:
        `out`, or `[T, D]`, contiguous, in x's dtype. All arithmetic is float32.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    for s in range(seqs.n_seqs):
        slot, source = int(seqs.slots[s]), int(seqs.sources[s])
        h = torch.zeros(A.shape, device=x.device) if seqs.fresh[s] else state[source].float()
        for t in range(seqs.bounds[s], seqs.bounds[s + 1]):
            x_t = x[t].float()
            step = dt[t].float() if dt_bias is None else dt[t].float() + dt_bias.float()
            delta = F.softplus(step)
            h = torch.exp(delta * A) * h + B[t].float()[:, None] * (delta * x_t)
            y_t = (C[t].float()[:, None] * h).sum(0) + D * x_t
            y[t] = y_t if z is None else y_t * F.silu(z[t].float())
        state[slot] = h.to(state.dtype)
    return y
