"""Mixture of experts on one rank: every rank has its channels of every expert.

So any `tp` works, no token moves between ranks, and all of a layer is one sum: of the chosen
experts' outputs and of the MLP beside them. All ranks choose alike, from the same stream with the
same router.
"""

from collections.abc import Sequence

from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.layers.linear import ColumnParallelLinear, RowParallelLinear
from sidewinder.layers.mlp import mlp_of
from sidewinder.layers.weights import Weight, Weights
from sidewinder.model_config import ExpertsConfig, MLPConfig
from sidewinder.ops.add_rows import add_rows
from sidewinder.ops.experts import experts
from sidewinder.ops.experts.matrices import ExpertMatrices
from sidewinder.ops.route import route
from sidewinder.state.batch import Sequences


class MixtureOfExperts:
    """`sum of share * expert(x) over the chosen experts, + shared(x)`.

    Experts of a narrower stream read `to_latent(x)`, and their sum goes through `from_latent`,
    which is linear: of each rank's term, before the sum over ranks.

    Args:
        config: the experts, and how they are chosen.
        weights: `router`, `to_latent` and `from_latent` whole; `0`, `1`, ... and `shared`, each an
            MLP's.
        collectives: all ranks.

    Raises:
        ValueError: for an activation that is not supported; lists those that are.
    """

    def __init__(self, config: ExpertsConfig, weights: Weights, collectives: Collectives) -> None:
        self.config = config
        self.name = weights.name
        self.collectives = collectives
        self.router = weights["router.weight"]
        self.router_bias = weights.get("router.bias")
        own = [weights.under(str(number)) for number in range(config.n_experts)]
        self.matrices = ExpertMatrices(
            gate=_all(own, "gate") if config.gated else None,
            up=_all(own, "up"),
            down=_all(own, "down"),
        )
        kind = MLPConfig(config.d_ff, config.activation, gated=config.gated)
        self.activation = mlp_of(kind, own[0], collectives).activation
        self.to_latent: ColumnParallelLinear | None = None
        self.from_latent: RowParallelLinear | None = None
        if config.d_latent:
            self.to_latent = ColumnParallelLinear(weights.under("to_latent"))
            self.from_latent = RowParallelLinear(weights.under("from_latent"), collectives)
        self.shared = None
        if config.shared_d_ff:
            self.shared = mlp_of(kind, weights.under("shared"), collectives)
        ends = [self.from_latent, None if self.shared is None else self.shared.down]
        self._biased = [end for end in ends if end is not None and end.bias is not None]

    def __call__(self, x: Tensor, seqs: Sequences) -> Tensor:
        """The layer's delta `[T, d_model]` from the normed `x` `[T, d_model]`."""
        partial = self._partial(x)
        total = self.collectives.all_reduce_delta(partial, self.name, seqs.n_decodes)
        return self._with_biases(total)

    def start(self, x: Tensor, seqs: Sequences) -> Pending:
        """The call, with its sum begun."""
        partial = self._partial(x)
        total = self.collectives.start_all_reduce_delta(partial, self.name, seqs.n_decodes)
        return total.then(self._with_biases) if self._biased else total

    def _with_biases(self, total: Tensor) -> Tensor:
        for projection in self._biased:
            total = projection.add_bias(total)
        return total

    def _partial(self, x: Tensor) -> Tensor:
        """This rank's term of the sum."""
        chosen, shares = route(x, self.router, self.router_bias, self.config.router)
        own = x if self.to_latent is None else self.to_latent(x)
        partial = experts(own, self.matrices, chosen, shares, self.activation)
        if self.from_latent is not None:
            partial = self.from_latent.partial(partial)
        return partial if self.shared is None else add_rows(partial, self.shared.partial(x))


def _all(experts_weights: Sequence[Weights], name: str) -> tuple[Weight, ...]:
    return tuple(weights.under(name).matrix("weight") for weights in experts_weights)
