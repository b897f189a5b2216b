"""Linear layers split over ranks: by output rows, and by input columns with a sum."""

from copy import copy

from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.layers.weights import Weights, rows_of
from sidewinder.ops.linear import linear
from sidewinder.state.batch import Sequences


class ColumnParallelLinear:
    """`[T, i] -> [T, o_local]`: this rank's outputs from whole inputs; no communication.

    Args:
        weights: `weight` `[o_local, i]` and, if the model has it, `bias` `[o_local]`.
    """

    def __init__(self, weights: Weights) -> None:
        self.weight = weights.matrix("weight")
        self.bias = weights.get("bias")

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def part(self, which: slice) -> "ColumnParallelLinear":
        """The layer of some of the outputs: the columns `which` of the result."""
        part = copy(self)
        part.weight = rows_of(self.weight, which)
        part.bias = None if self.bias is None else self.bias[which]
        return part


class RowParallelLinear:
    """`[T, i_local] -> [T, o]`: a sum over ranks of what each makes from its inputs.

    The sum is in the activations' dtype, or quantised if the collectives have a codec for this
    layer's name; the bias, whole on every rank, is added once, after it.

    Args:
        weights: `weight` `[o, i_local]` and, if the model has it, `bias` `[o]`.
        collectives: the ranks to sum over.
    """

    def __init__(self, weights: Weights, collectives: Collectives) -> None:
        self.weight = weights.matrix("weight")
        self.bias = weights.get("bias")
        self.collectives = collectives
        self.name = weights.name

    def __call__(self, x: Tensor, seqs: Sequences) -> Tensor:
        return self.delta(self.partial(x), seqs)

    def start(self, x: Tensor, seqs: Sequences) -> Pending:
        """The call, with its sum begun."""
        return self.start_delta(self.partial(x), seqs)

    def partial(self, x: Tensor) -> Tensor:
        """This rank's term of the sum, `[T, o]`."""
        return linear(x, self.weight)

    def delta(self, partial: Tensor, seqs: Sequences) -> Tensor:
        """The sum over ranks of what `partial` returned, with the bias."""
        return self.add_bias(self.sum(partial, seqs))

    def start_delta(self, partial: Tensor, seqs: Sequences) -> Pending:
        """`delta`, its sum begun."""
        total = self.start_sum(partial, seqs)
        return total if self.bias is None else total.then(self.add_bias)

    def sum(self, partial: Tensor, seqs: Sequences) -> Tensor:
        """The sum over ranks of what `partial` returned, `[T, o]`."""
        return self.collectives.all_reduce_delta(partial, self.name, seqs.n_decodes)

    def start_sum(self, partial: Tensor, seqs: Sequences) -> Pending:
        """`sum`, begun."""
        return self.collectives.start_all_reduce_delta(partial, self.name, seqs.n_decodes)

    def add_bias(self, total: Tensor) -> Tensor:
        """The sum, with the bias."""
        return total if self.bias is None else total + self.bias
