"""The selective scan from x_proj's output on, out of the operators that it consists of."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sidewinder.ops.linear import linear
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.ops.selective_scan import selective_scan
from sidewinder.state.batch import Sequences

if TYPE_CHECKING:
    from sidewinder.layers.weights import Weight

MOST_FUSED = 4
"""Single tokens up to which a GPU runs one kernel instead: each reads dt_proj's weight again, and
with more, torch's product is the faster way."""


def projected_scan(
    x: Tensor,
    low: Tensor,
    dt_proj: "Weight",
    norm_eps: float | None,
    norm_weight: Tensor | None,
    A: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    seqs: Sequences,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.projected_scan`, on the chosen backend of each."""
    states = A.shape[0]
    sizes = [low.shape[1] - 2 * states, states, states]
    dt, B, C = torch.split(low, sizes, dim=-1)
    if norm_eps is not None:
        weights = (None,) * 3 if norm_weight is None else torch.split(norm_weight, sizes)
        dt, B, C = (
            rms_norm(part, weight, norm_eps)
            for part, weight in zip((dt, B, C), weights, strict=True)
        )
    return selective_scan(x, linear(dt, dt_proj), A, B, C, D, z, dt_bias, state, seqs, out)
