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
    norm_weight: Tensor | None,
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
        norm_eps: of the RMS norms of dt, B and C; None for none.
        norm_weight: of these norms, `[R + 2N]`, side by side as in `low`; None for none.

    Returns:
        `out`, or `[T, channels]`, contiguous, in x's dtype.
    """
    states = A.shape[0]
    sizes = [low.shape[1] - 2 * states, states, states]
    dt, B, C = torch.split(low, sizes, dim=-1)
    if norm_eps is not None:
        weights = (None,) * 3 if norm_weight is None else torch.split(norm_weight, sizes)
        dt, B, C = (
            normed(part, weight, norm_eps) for part, weight in zip((dt, B, C), weights, strict=True)
        )
    return selective_scan(x, linear(dt, dt_proj), A, B, C, D, z, dt_bias, state, seqs, out)


def normed(part: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The RMS norm of rows."""
    result = rms_norm(part, weight, eps)
    assert isinstance(result, Tensor), "no residual was given"
    return result
