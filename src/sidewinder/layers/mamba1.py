"""The Mamba-1 mixer on one rank: Mamba, Falcon-Mamba, Zamba and Jamba differ only in small pieces.

    x, z = in_proj(u)                     channels of this rank
    x    = silu(conv(x))
    dt, B, C = x_proj(x)                  summed over the ranks that share a head (collective #1)
    y    = scan(x, dt_proj(dt), B, C) * silu(z)
    out  = out_proj(y)                    summed over all ranks (collective #2)

A *head* has its own dt, B and C. Most models have one; Zamba has several, and a rank
holds whole heads, a part of one, or pieces of neighbours (`LocalDims.head_pieces`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.config import ModelConfig
from sidewinder.layers.linear import ColumnParallelLinear, RowParallelLinear
from sidewinder.layers.overlap import PLAIN, Overlap, nothing
from sidewinder.layers.weights import Weights, columns_of, rows_of
from sidewinder.ops.causal_conv1d import causal_conv1d
from sidewinder.ops.linear import linear
from sidewinder.ops.projected_scan import projected_scan
from sidewinder.ops.workspace import empty
from sidewinder.sharding.dims import HeadPiece, LocalDims
from sidewinder.state.batch import Sequences
from sidewinder.state.pool import LayerState


class HeadScan:
    """One head's piece on this rank: dt projection and scan of its channels.

    Args:
        piece: which local channels, of which head.
        config: for sizes and the norm on dt, B, C.
        weights: the mixer's.
    """

    def __init__(self, piece: HeadPiece, config: ModelConfig, weights: Weights) -> None:
        self.channels = channels = slice(piece.start, piece.stop)
        # One head over all local channels, as most models have: nothing to cut at each step.
        self.is_whole = channels == slice(0, weights["D"].shape[0])
        self.norm_eps = config.mixer_norm_eps
        # Side by side, as x_proj makes what they are the norms' weights of.
        self.norm_weight = (
            torch.cat([weights[f"{name}_norm.weight"] for name in ("dt", "B", "C")])
            if config.mixer_norm_weights
            else None
        )
        self.x_proj = columns_of(weights.matrix("x_proj.weight"), channels)
        self.dt_proj = rows_of(weights.matrix("dt_proj.weight"), channels)
        self.dt_bias = weights["dt_proj.bias"][channels]
        self.A = -torch.exp(weights["A_log"].float())[:, channels]
        self.D = weights["D"].float()[channels]

    def project(self, x: Tensor) -> Tensor:
        """This piece's term of its head's `dt, B, C`: `[T, R + 2N]` from all local channels."""
        return linear(self._mine(x), self.x_proj)

    def scan(
        self,
        x: Tensor,
        z: Tensor,
        dt_b_c: Tensor,
        state: Tensor,
        seqs: Sequences,
        out: Tensor | None = None,
    ) -> Tensor:
        """Gated outputs of the piece's channels; `x, z, state, out` hold all local channels."""
        return projected_scan(
            self._mine(x),
            dt_b_c,
            self.dt_proj,
            self.norm_eps,
            self.norm_weight,
            self.A,
            self.D,
            self._mine(z),
            self.dt_bias,
            self._mine(state),
            seqs,
            None if out is None else self._mine(out),
        )

    def _mine(self, channels_last: Tensor) -> Tensor:
        return channels_last if self.is_whole else channels_last[..., self.channels]


class Mamba1Mixer:
    """Mixer of one layer.

    Args:
        config, dims: the model's sizes and this rank's shares.
        weights: the mixer's.
        collectives: all ranks.
        head_collectives: the ranks that share this rank's heads, `dims.x_proj_partition`.
        overlap: whether x_proj's sum is hidden behind the z half of `in_proj`.
    """

    def __init__(
        self,
        config: ModelConfig,
        dims: LocalDims,
        weights: Weights,
        collectives: Collectives,
        head_collectives: Collectives,
        overlap: Overlap = PLAIN,
    ) -> None:
        self.in_proj = ColumnParallelLinear(weights.under("in_proj"))
        self.x_half = slice(0, dims.d_inner_local)
        self.z_half = slice(dims.d_inner_local, 2 * dims.d_inner_local)
        self.out_proj = RowParallelLinear(weights.under("out_proj"), collectives)
        self.conv_weight = weights["conv.weight"]
        self.conv_bias = weights.get("conv.bias")
        self.head_collectives = head_collectives
        self.hides_x_proj = overlap.x_proj and head_collectives.tp.size > 1
        if self.hides_x_proj:
            self.in_proj_x = self.in_proj.part(self.x_half)
            self.in_proj_z = self.in_proj.part(self.z_half)
        self.first_head = dims.x_proj_heads.start
        self.n_heads = dims.x_proj_heads.size
        self.pieces = [HeadScan(piece, config, weights) for piece in dims.head_pieces]
        self.piece_heads = [piece.head - self.first_head for piece in dims.head_pieces]

    def __call__(self, hidden: Tensor, state: LayerState, seqs: Sequences) -> Tensor:
        """The layer's delta `[T, d_model]` from the normed `hidden` `[T, d_model]`."""
        return self.out_proj(self._scanned(hidden, state, seqs), seqs)

    def start(
        self,
        hidden: Tensor,
        state: LayerState,
        seqs: Sequences,
        midway: Callable[[], None] = nothing,
    ) -> Pending:
        """The call, with the sum of its delta begun; does `midway` about half way there."""
        return self.out_proj.start(self._scanned(hidden, state, seqs, midway), seqs)

    def _scanned(
        self,
        hidden: Tensor,
        state: LayerState,
        seqs: Sequences,
        midway: Callable[[], None] = nothing,
    ) -> Tensor:
        """The gated outputs of this rank's channels, `[T, d_inner_local]`."""
        if self.hides_x_proj:
            x = self._convolved(self.in_proj_x(hidden), state, seqs)
            pending = self.head_collectives.start_all_reduce(self._packed(self._terms(x)))
            midway()
            z = self.in_proj_z(hidden)
            parameters = pending.wait().unbind(0)
        else:
            projected = self.in_proj(hidden)
            midway()
            z = projected[:, self.z_half]
            x = self._convolved(projected[:, self.x_half], state, seqs)
            parameters = self._summed(self._terms(x))
        if len(self.pieces) == 1:
            return self.pieces[0].scan(x, z, parameters[self.piece_heads[0]], state.ssm, seqs)
        y = empty(x.shape, x.dtype, x.device)
        for piece, head in zip(self.pieces, self.piece_heads, strict=True):
            piece.scan(x, z, parameters[head], state.ssm, seqs, y)
        return y

    def _convolved(self, x: Tensor, state: LayerState, seqs: Sequences) -> Tensor:
        return causal_conv1d(x, self.conv_weight, self.conv_bias, state.conv, seqs)

    def _terms(self, x: Tensor) -> tuple[Tensor, ...]:
        """Each piece's term of its head's `dt, B, C`."""
        return tuple(piece.project(x) for piece in self.pieces)

    def _summed(self, terms: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """`dt, B, C` (`[T, R + 2N]`) of each head that this rank's group of ranks holds."""
        if self.head_collectives.tp.size == 1:
            return terms
        return self.head_collectives.all_reduce(self._packed(terms)).unbind(0)

    def _packed(self, terms: tuple[Tensor, ...]) -> Tensor:
        """The terms as one message, `[heads, T, R + 2N]`."""
        if self.n_heads == 1:
            return terms[0][None]
        # The group's ranks hold pieces of different heads; a rank adds zero to heads it lacks.
        packed = terms[0].new_zeros(self.n_heads, *terms[0].shape)
        for term, head in zip(terms, self.piece_heads, strict=True):
            packed[head] = term
        return packed
