"""Experts one after the other, each with all rows that chose it.

Their products are those of `ops.linear`, so packed and int8 matrices are multiplied as anywhere
else. How many rows each has is read on the host.
"""

import torch
from torch import Tensor

from sidewinder.ops.experts.matrices import ExpertMatrices
from sidewinder.ops.gated_activation import gated_activation
from sidewinder.ops.linear import linear


def experts(
    x: Tensor, matrices: ExpertMatrices, chosen: Tensor, shares: Tensor, activation: str
) -> Tensor:
    """As `reference.experts`."""
    k = chosen.shape[1]
    in_order = chosen.flatten().argsort(stable=True)
    counts = chosen.flatten().bincount(minlength=len(matrices.up)).tolist()
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert, pairs in enumerate(torch.split(in_order, counts)):
        if not len(pairs):
            continue
        rows = pairs // k
        own = x[rows]
        up = linear(own, matrices.up[expert])
        gate = up if matrices.gate is None else linear(own, matrices.gate[expert])
        out = linear(gated_activation(gate, up, activation), matrices.down[expert])
        y.index_add_(0, rows, out.float() * shares.flatten()[pairs, None])
    return y.to(x.dtype)
