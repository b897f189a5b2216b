"""The selective scan from x_proj's output on: the definition."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sidewinder.ops.linear.reference import linear
from sidewinder.ops.rms_norm.reference import rms_norm
from sidewinder.ops.selective_scan.reference import selective_scan
from sidewinder.state.batch import Sequences

if TYPE_CHECKING:
    from sidewinder.layers.weights import Weight


def projected_scan(
    x: Tensor,
    low: Tensor,
    dt_proj: "Weight",
    norm_eps: float | None,
    A: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    seqs: Sequences,
    out: Tensor | None = None,
) -> Tensor:
    """`selective_scan` with `dt, B, C = low`, each normed if there is an eps, and `dt_proj @ dt`.

    Args:
        x, A, D, z, dt_bias, state, seqs, out: as of `selective_scan`.
        low: `[T, R + 2N]`, what x_proj makes; rows contiguous.
        dt_proj: `[channels, R]`.
        norm_eps: of the RMS norms (without weights) of dt, B and C; None for none.

    Returns:
        `out`, or `[T, channels]`, contiguous, in x's dtype.
    """
    states = A.shape[0]
    dt, B, C = torch.split(low, [low.shape[1] - 2 * states, states, states], dim=-1)
    if norm_eps is not None:
        dt, B, C = (normed(part, norm_eps) for part in (dt, B, C))
    return selective_scan(x, linear(dt, dt_proj), A, B, C, D, z, dt_bias, state, seqs, out)


def normed(part: Tensor, eps: float) -> Tensor:
    """The RMS norm of rows, without a weight."""
    result = rms_norm(part, None, eps)
    assert isinstance(result, Tensor), "no residual was given"
    return result
