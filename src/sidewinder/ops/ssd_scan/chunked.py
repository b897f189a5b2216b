"""Mamba-2's scan in torch: matrix products inside chunks of tokens, sequential over chunks.

Inside a chunk the output is a masked, decayed attention,
`y_t = sum_{s≤t} (C_t·B_s) exp(c_t - c_s) Δ_s x_s` with `c` the running sum of `Δ A` (Mamba-2 paper,
section 6), plus what the chunk's first state still contributes. Only exponentials of differences
`c_t - c_s ≤ 0` are formed, the differences in float64, so nothing overflows or cancels. Memory is
that of one chunk, whatever the length.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sidewinder.state.batch import Sequences

CHUNK = 64


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
    """As `reference.ssd_scan`."""
    delta = F.softplus(dt.float() + dt_bias).clamp(*dt_limit)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for part in seqs.single_tokens:
        h = state[seqs.sources[part]].float().masked_fill(seqs.fresh[part, None, None, None], 0)
        out, h = _update(x[part].float(), delta[part], A, B[part], C[part], h, head_group)
        y[part] = out.addcmul_(x[part].float(), D[:, None])
        state[seqs.slots[part]] = h.to(state.dtype)
    for s in range(seqs.n_decodes, seqs.n_seqs):
        slot = seqs.slots[s : s + 1]
        h = state[seqs.sources[s : s + 1]].float().masked_fill(seqs.fresh[s], 0)[0]
        for start in range(seqs.bounds[s], seqs.bounds[s + 1], CHUNK):
            rows = slice(start, min(start + CHUNK, seqs.bounds[s + 1]))
            x_chunk = x[rows].float()
            out, h = _chunk(x_chunk, delta[rows], A, B[rows], C[rows], h, head_group)
            y[rows] = out.addcmul_(x_chunk, D[:, None])
        state[slot] = h[None].to(state.dtype)
    return y


def _update(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, head_group: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of each of n sequences: outputs `[n, H, P]` and states `[n, H, N, P]`."""
    B, C = B.float()[:, head_group], C.float()[:, head_group]  # [n, H, N]
    decay = torch.exp(delta * A)[:, :, None, None]
    h = torch.addcmul(h * decay, B[..., None], (delta[..., None] * x)[:, :, None, :])
    return torch.matmul(C[:, :, None, :], h)[:, :, 0], h


def _chunk(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, head_group: Tensor
) -> tuple[Tensor, Tensor]:
    """One chunk of q tokens of one sequence: outputs `[q, H, P]`, state after it `[H, N, P]`."""
    B, C = B.float().transpose(0, 1), C.float().transpose(0, 1)  # [G, q, N]
    driven = (delta[..., None] * x).transpose(0, 1)  # [H, q, P]
    total = (delta * A).T.double().cumsum(1)  # [H, q]
    later = torch.ones(x.shape[0], x.shape[0], dtype=torch.bool, device=x.device).triu(1)
    between = (total[:, :, None] - total[:, None, :]).masked_fill_(later, -torch.inf)
    scores = torch.bmm(C, B.transpose(1, 2))[head_group]  # [H, q, q]
    y = torch.bmm(scores.mul_(between.float().exp_()), driven)
    from_start = total.float().exp_()[..., None]
    y.add_(torch.bmm(C[head_group], h).mul_(from_start))
    to_end = (total[:, -1:] - total).float().exp_()[..., None]
    h = torch.baddbmm(h * from_start[:, -1:], B[head_group].transpose(1, 2), driven.mul_(to_end))
    return y.transpose(0, 1), h
