"""The Mamba-2 mixer on one rank.

z, x, B, C, dt = in_proj(u)           heads of this rank, and the groups of B and C they use
x, B, C = silu(conv(x, B, C))
y    = scan(x, dt, B, C)
out  = out_proj(norm(y, z))           summed over all ranks
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.config import ModelConfig
from sidewinder.layers.gated_output import gated_output
from sidewinder.layers.linear import ColumnParallelLinear
from sidewinder.layers.overlap import nothing
from sidewinder.layers.weights import Weights
from sidewinder.ops.causal_conv1d import causal_conv1d
from sidewinder.ops.ssd_scan import ssd_scan
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import Sequences
from sidewinder.state.pool import LayerState


class Mamba2Mixer:
    """Mixer of one layer.

    Args:
        config, dims: the model's sizes and this rank's shares.
        weights: the mixer's.
        collectives: all ranks.
    """

    def __init__(
        self, config: ModelConfig, dims: LocalDims, weights: Weights, collectives: Collectives
    ) -> None:
        groups = dims.n_groups_local * config.d_state
        self.bands = [dims.d_inner_local, dims.conv_dim_local, dims.n_heads_local]
        self.conv_bands = [dims.d_inner_local, groups, groups]
        self.head_shape = (dims.n_heads_local, config.head_dim)
        self.group_shape = (dims.n_groups_local, config.d_state)
        self.dt_limit = config.time_step_limit
        self.in_proj = ColumnParallelLinear(weights.under("in_proj"))
        self.conv_weight = weights["conv.weight"]
        self.conv_bias = weights.get("conv.bias")
        self.A = -torch.exp(weights["A_log"].float())
        self.D = weights["D"].float()
        self.dt_bias = weights["dt_bias"].float()
        self.head_group = torch.tensor(dims.head_group, device=self.A.device)
        self.output = gated_output(config, dims, weights, collectives)

    def __call__(self, hidden: Tensor, state: LayerState, seqs: Sequences) -> Tensor:
        """The layer's delta `[T, d_model]` from the normed `hidden` `[T, d_model]`."""
        return self.output(*self.scanned(hidden, state, seqs), seqs)

    def start(
        self,
        hidden: Tensor,
        state: LayerState,
        seqs: Sequences,
        midway: Callable[[], None] = nothing,
    ) -> Pending:
        """The call, with the sum of its delta begun; does `midway` about half way there."""
        return self.output.start(*self.scanned(hidden, state, seqs, midway), seqs)

    def scanned(
        self,
        hidden: Tensor,
        state: LayerState,
        seqs: Sequences,
        midway: Callable[[], None] = nothing,
    ) -> tuple[Tensor, Tensor]:
        """The scan's outputs and the gate, `[T, d_inner_local]` each."""
        z, x_b_c, dt = torch.split(self.in_proj(hidden), self.bands, dim=-1)
        midway()
        x_b_c = causal_conv1d(x_b_c, self.conv_weight, self.conv_bias, state.conv, seqs)
        x, B, C = torch.split(x_b_c, self.conv_bands, dim=-1)
        y = ssd_scan(
            x.view(-1, *self.head_shape),
            dt,
            self.A,
            B.view(-1, *self.group_shape),
            C.view(-1, *self.group_shape),
            self.D,
            self.dt_bias,
            state.ssm,
            seqs,
            self.dt_limit,
            self.head_group,
        )
        return y.flatten(1), z
