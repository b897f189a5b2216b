"""Mamba-1's selective scan in torch: parallel inside chunks of tokens, sequential over chunks.

The recurrence `h_t = a_t h_{t-1} + b_t` composes: (a, b) then (a', b') is (a a', a' b + b'). A
chunk is cut into sub-chunks; the scan runs inside all of them at once, then the state is carried
across their ends. Decays only ever multiply (all are ≤ 1), so nothing overflows and nothing is
divided by a product that has underflowed. Memory is that of one chunk, whatever the length.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sidewinder.state.batch import Sequences

SUB_CHUNK = 8
CHUNK_BYTES = 2 << 20
"""Aim for one chunk's `[tokens, N, D]` float32 states: large enough to hide the calls, small enough
for a cache."""


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
    """As `reference.selective_scan`."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    for part in seqs.single_tokens:
        h = state[seqs.sources[part]].float().masked_fill(seqs.fresh[part, None, None], 0)
        decay, drive = _discretise(x[part], dt[part], A, B[part], dt_bias)
        h = decay.mul_(h).add_(drive)
        y[part] = _output(h, x[part], C[part], D, None if z is None else z[part])
        state[seqs.slots[part]] = h.to(state.dtype)
    chunk = SUB_CHUNK * max(1, CHUNK_BYTES // (4 * SUB_CHUNK * A.numel()))
    for s in range(seqs.n_decodes, seqs.n_seqs):
        slot = seqs.slots[s : s + 1]
        h = state[seqs.sources[s : s + 1]].float().masked_fill(seqs.fresh[s], 0)[0]
        for start in range(seqs.bounds[s], seqs.bounds[s + 1], chunk):
            rows = slice(start, min(start + chunk, seqs.bounds[s + 1]))
            decay, drive = _discretise(x[rows], dt[rows], A, B[rows], dt_bias)
            states = _scan(decay, drive, h)
            y[rows] = _output(states, x[rows], C[rows], D, None if z is None else z[rows])
            h = states[-1].clone()
        state[slot] = h[None].to(state.dtype)
    return y


def _discretise(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, dt_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Decay `exp(Δ A)` and drive `Δ B x` of each token, float32 `[t, N, D]`."""
    step = dt.float() if dt_bias is None else dt.float() + dt_bias
    delta = F.softplus(step)
    decay = torch.exp_(delta[:, None, :] * A)
    drive = B.float()[:, :, None] * (delta * x.float())[:, None, :]
    return decay, drive


def _scan(decay: Tensor, drive: Tensor, h: Tensor) -> Tensor:
    """All states `[t, N, D]` of a chunk that starts from `h` `[N, D]`; overwrites its arguments."""
    tokens = decay.shape[0]
    whole = tokens - tokens % SUB_CHUNK
    if whole:
        shape = (-1, SUB_CHUNK, *h.shape)
        _scan_block(decay[:whole].view(shape), drive[:whole].view(shape), h)
        h = drive[whole - 1]
    if whole < tokens:
        _scan_block(decay[None, whole:], drive[None, whole:], h)
    return drive


def _scan_block(decay: Tensor, drive: Tensor, h: Tensor) -> None:
    """Turn `drive` `[sub-chunks, width, N, D]` into the states, starting from `h`."""
    for i in range(1, decay.shape[1]):
        drive[:, i].addcmul_(decay[:, i], drive[:, i - 1])
        decay[:, i].mul_(decay[:, i - 1])
    for j in range(decay.shape[0]):
        drive[j].addcmul_(decay[j], h)
        h = drive[j, -1]


def _output(states: Tensor, x: Tensor, C: Tensor, D: Tensor, z: Tensor | None) -> Tensor:
    """`sum_n C[n] h[n, d] + D x`, gated; `[t, D]` float32."""
    y = torch.bmm(C.float()[:, None, :], states)[:, 0].addcmul_(x.float(), D)
    return y if z is None else y.mul_(F.silu(z.float()))
