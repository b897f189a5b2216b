"""MLPs on one rank: the inner width is split, and `down` is row-parallel, one sum."""

from abc import ABC, abstractmethod

from torch import Tensor

from sidewinder.activations import ACTIVATIONS, SQUARED_RELU
from sidewinder.collectives.base import Collectives, Pending
from sidewinder.layers.adapter import Adapter
from sidewinder.layers.linear import ColumnParallelLinear, RowParallelLinear
from sidewinder.layers.weights import Weights
from sidewinder.model_config import MLPConfig
from sidewinder.ops.add_rows import add_rows
from sidewinder.ops.gated_activation import gated_activation
from sidewinder.state.batch import Sequences


class MLP(ABC):
    """`down(inner(x))`.

    Args:
        weights: `up` split by row, `down` by column.
        collectives: all ranks.
    """

    activation: str
    """What `ops.gated_activation` calls it."""

    def __init__(self, weights: Weights, collectives: Collectives) -> None:
        self.up = ColumnParallelLinear(weights.under("up"))
        self.down = RowParallelLinear(weights.under("down"), collectives)

    def __call__(self, x: Tensor, seqs: Sequences) -> Tensor:
        """The layer's delta `[T, d_model]` from the normed `x` `[T, d_model]`."""
        return self.down(self._inner(x), seqs)

    def start(self, x: Tensor, seqs: Sequences) -> Pending:
        """The call, with its sum begun."""
        return self.down.start(self._inner(x), seqs)

    def partial(self, x: Tensor) -> Tensor:
        """This rank's term of the delta, without the bias of `down`."""
        return self.down.partial(self._inner(x))

    @abstractmethod
    def _inner(self, x: Tensor) -> Tensor: ...


class GatedMLP(MLP):
    """`down(act(gate(x)) * up(x))`.

    Args:
        activation: one of `ACTIVATIONS`.
        weights: also `gate`, split by row.
        collectives: all ranks.

    Raises:
        ValueError: for an activation that is not supported; lists those that are.
    """

    def __init__(self, activation: str, weights: Weights, collectives: Collectives) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
            )
        super().__init__(weights, collectives)
        self.activation = activation
        self.gate = ColumnParallelLinear(weights.under("gate"))

    def _inner(self, x: Tensor) -> Tensor:
        return gated_activation(self.gate(x), self.up(x), self.activation)


class SquaredMLP(MLP):
    """`down(relu(up(x))^2)`: without a gate, or each channel of `up` is its own."""

    activation = "relu"

    def _inner(self, x: Tensor) -> Tensor:
        inner = self.up(x)
        return gated_activation(inner, inner, self.activation)


class AdaptedMLP(GatedMLP):
    """A gated MLP of which a call adds to gate and up.

    Args:
        activation, weights, collectives: as of `GatedMLP`.
        adapter: `A`, and `B` with gate's rows before up's.
    """

    def __init__(
        self, activation: str, weights: Weights, collectives: Collectives, adapter: Weights
    ) -> None:
        super().__init__(activation, weights, collectives)
        self.adapter = Adapter(adapter)

    def _inner(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)
        for_gate, for_up = self.adapter(x).chunk(2, dim=1)
        return gated_activation(add_rows(gate, for_gate), add_rows(up, for_up), self.activation)


def mlp_of(config: MLPConfig, weights: Weights, collectives: Collectives) -> MLP:
    """The MLP that `config` describes.

    Raises:
        ValueError: for an activation that is not supported; lists those that are.
    """
    if config.gated:
        return GatedMLP(config.activation, weights, collectives)
    if config.activation != SQUARED_RELU:
        raise ValueError(
            f"activation {config.activation!r} is not supported without a gate; "
            f"supported: {SQUARED_RELU}"
        )
    return SquaredMLP(weights, collectives)
