"""Low-rank adapters: what one call of shared weights adds to them (Hu et al. 2021).

They are kept apart from the weights. Added to them, `W + B A` for every call, they would cost no
work, but as many copies of the largest matrices as there are calls (docs/sharding.md).
"""

from collections.abc import Callable

from torch import Tensor

from sidewinder.layers.weights import Weights
from sidewinder.ops.add_rows import add_rows
from sidewinder.ops.linear import linear


class Adapter:
    """`B (A x)`, `[T, i] -> [T, o_local]`; no communication.

    Args:
        weights: `A` `[rank, i]`, whole on every rank; `B` `[o_local, rank]`, split by row.
    """

    def __init__(self, weights: Weights) -> None:
        self.A, self.B = weights.matrix("A.weight"), weights.matrix("B.weight")

    def __call__(self, x: Tensor) -> Tensor:
        return linear(linear(x, self.A), self.B)


def adapted(
    layer: Callable[[Tensor], Tensor], adapter: Weights | None
) -> Callable[[Tensor], Tensor]:
    """The layer plus its adapter, where there is one."""
    if adapter is None:
        return layer
    more = Adapter(adapter)
    return lambda x: add_rows(layer(x), more(x))
