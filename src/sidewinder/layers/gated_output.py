"""The end of the Mamba-2 mixer on one rank: gate, grouped RMS norm, output projection, one sum.

The norm's groups are the model's; ranks may cut them. Four ways, chosen once at build:

- `GateOutput`: the model has no gated norm.
- `WholeGroupsOutput`: every rank holds whole groups; nothing to exchange.
- `OneGroupOutput`: one group over all ranks. The norm is one factor per token and the projection is
  linear, so the unnormalised values are projected, the sum of squares travels with the partial sum,
  and the factor is applied afterwards: still one collective (two if the partial sum is quantised).
- `CutGroupsOutput`: groups cut between ranks: one small float32 sum of squares per group first.
  So, too, one group over all ranks where the mixer's sum is also attention's (Falcon-H1), which the
  factor must not scale.
"""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.config import ModelConfig
from sidewinder.layers.linear import RowParallelLinear
from sidewinder.layers.weights import Weights
from sidewinder.ops.gated_activation import gated_activation
from sidewinder.ops.gated_rms_norm import gated_rms_norm
from sidewinder.ops.gated_squares import gated_squares
from sidewinder.ops.scaled_rows import scaled_rows
from sidewinder.ops.with_scalar import with_scalar
from sidewinder.sharding.dims import LocalDims, channel_shares
from sidewinder.state.batch import Sequences


class GatedOutput(Protocol):
    """From scan output and gate, `[T, d_inner_local]` each, to the layer's delta `[T, d_model]`."""

    def __call__(self, x: Tensor, z: Tensor, seqs: Sequences) -> Tensor: ...

    def start(self, x: Tensor, z: Tensor, seqs: Sequences) -> Pending:
        """The call, with the sum of the delta begun."""
        ...


def gated_output(
    config: ModelConfig, dims: LocalDims, weights: Weights, collectives: Collectives
) -> GatedOutput:
    """The way that fits the model's groups and the ranks' shares; the same on every rank."""
    out_proj = RowParallelLinear(weights.under("out_proj"), collectives)
    if not config.gated_norm:
        return GateOutput(out_proj)
    weight = weights["norm.weight"]
    group_size = config.d_inner // config.n_groups
    shares = channel_shares(config, dims.tp.size)
    if all(share.start % group_size == 0 == share.stop % group_size for share in shares):
        return WholeGroupsOutput(config, weight, out_proj)
    if config.n_groups == 1 and not config.is_parallel:
        return OneGroupOutput(config, weight, out_proj)
    channels = torch.arange(dims.channels.start, dims.channels.stop, device=weight.device)
    return CutGroupsOutput(config, weight, out_proj, channels // group_size)


class NormedOutput(ABC):
    """Where all of the norm comes before the projection."""

    def __init__(self, out_proj: RowParallelLinear) -> None:
        self.out_proj = out_proj

    def __call__(self, x: Tensor, z: Tensor, seqs: Sequences) -> Tensor:
        return self.out_proj(self._normed(x, z), seqs)

    def start(self, x: Tensor, z: Tensor, seqs: Sequences) -> Pending:
        return self.out_proj.start(self._normed(x, z), seqs)

    def partial(self, x: Tensor, z: Tensor) -> Tensor:
        """This rank's term of the call's sum, `[T, d_model]`."""
        return self.out_proj.partial(self._normed(x, z))

    @abstractmethod
    def _normed(self, x: Tensor, z: Tensor) -> Tensor:
        """What is projected, `[T, d_inner_local]`."""


class GateOutput(NormedOutput):
    """No norm: `out_proj(x * silu(z))`."""

    def _normed(self, x: Tensor, z: Tensor) -> Tensor:
        return gated_activation(z, x, "silu")


class WholeGroupsOutput(NormedOutput):
    """Every rank normalises its own groups."""

    def __init__(self, config: ModelConfig, weight: Tensor, out_proj: RowParallelLinear) -> None:
        super().__init__(out_proj)
        self.weight = weight
        self.eps = config.gated_norm_eps
        self.group_size = config.d_inner // config.n_groups
        self.norm_before_gate = config.norm_before_gate

    def _normed(self, x: Tensor, z: Tensor) -> Tensor:
        return gated_rms_norm(x, z, self.weight, self.eps, self.group_size, self.norm_before_gate)


class OneGroupOutput:
    """One group over all ranks: project first, scale after the sum."""

    def __init__(self, config: ModelConfig, weight: Tensor, out_proj: RowParallelLinear) -> None:
        self.weight = weight.float()
        self.eps = config.gated_norm_eps
        self.d_inner, self.d_model = config.d_inner, config.d_model
        self.norm_before_gate = config.norm_before_gate
        self.out_proj = out_proj

    def __call__(self, x: Tensor, z: Tensor, seqs: Sequences) -> Tensor:
        collectives = self.out_proj.collectives
        if not collectives.is_exact(self.out_proj.name):
            return self.start(x, z, seqs).wait()
        partial, squares = self._partial(x, z)
        return self._of_message(collectives.all_reduce(self._message(partial, squares)))

    def start(self, x: Tensor, z: Tensor, seqs: Sequences) -> Pending:
        """Both sums begun: together, or apart where the first is quantised and the second not."""
        partial, squares = self._partial(x, z)
        collectives = self.out_proj.collectives
        if collectives.is_exact(self.out_proj.name):
            message = self._message(partial, squares)
            return collectives.start_all_reduce(message).then(self._of_message)
        total = self.out_proj.start_sum(partial, seqs)
        summed = collectives.start_all_reduce(squares / self.d_inner)
        return Pending(lambda: self._delta(total.wait(), summed.wait()), total.advance)

    def _partial(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        gated, squares = gated_squares(x, z, self.weight, self.norm_before_gate)
        return self.out_proj.partial(gated), squares

    def _message(self, partial: Tensor, squares: Tensor) -> Tensor:
        tp = self.out_proj.collectives.tp
        return with_scalar(partial, squares, self.d_inner, tp.rank, tp.size)

    def _of_message(self, total: Tensor) -> Tensor:
        return self._delta(total[:, : self.d_model], total[:, self.d_model :])

    def _delta(self, total: Tensor, mean_squares: Tensor) -> Tensor:
        return self.out_proj.add_bias(scaled_rows(total, mean_squares, self.eps))


class CutGroupsOutput(NormedOutput):
    """Groups cut between ranks: their sums of squares are summed before the norm.

    Args:
        channel_group: int64 `[d_inner_local]`, the model's group of each local channel.
    """

    def __init__(
        self,
        config: ModelConfig,
        weight: Tensor,
        out_proj: RowParallelLinear,
        channel_group: Tensor,
    ) -> None:
        super().__init__(out_proj)
        self.weight = weight.float()
        self.eps = config.gated_norm_eps
        self.n_groups = config.n_groups
        self.group_size = config.d_inner // config.n_groups
        self.norm_before_gate = config.norm_before_gate
        self.channel_group = channel_group

    def _normed(self, x: Tensor, z: Tensor) -> Tensor:
        normalised, scaled = _gate(x, z, self.weight, self.norm_before_gate)
        squares = normalised.new_zeros(x.shape[0], self.n_groups)
        squares.index_add_(1, self.channel_group, normalised.square())
        squares = self.out_proj.collectives.all_reduce(squares)
        factor = torch.rsqrt(squares / self.group_size + self.eps)[:, self.channel_group]
        return (scaled * factor).to(x.dtype)


def _gate(x: Tensor, z: Tensor, weight: Tensor, norm_before_gate: bool) -> tuple[Tensor, Tensor]:
    """What the mean square is taken of, and what its factor then scales; float32."""
    x, gate = x.float(), F.silu(z.float())
    gated = x * gate
    return (x if norm_before_gate else gated), gated * weight
