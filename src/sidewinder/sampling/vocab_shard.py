"""Which columns of the logits a rank has, and how it learns about the others."""

from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from sidewinder.collectives.base import Collectives, SingleRank


@dataclass(frozen=True)
class VocabShard:
    """One rank's share of the vocabulary: consecutive ids, in rank order.

    Attributes:
        sizes: number of ids of every rank.
        collectives: the ranks; all make the same calls in the same order.
    """

    sizes: tuple[int, ...]
    collectives: Collectives

    @classmethod
    def whole(cls, vocab_size: int) -> "VocabShard":
        """The share of a rank that is alone."""
        return cls((vocab_size,), SingleRank())

    @property
    def n_ranks(self) -> int:
        return len(self.sizes)

    @property
    def size(self) -> int:
        """Number of ids of this rank."""
        return self.sizes[self.collectives.tp.rank]

    @property
    def starts(self) -> tuple[int, ...]:
        """First id of every rank."""
        return tuple(accumulate(self.sizes, initial=0))[:-1]

    @property
    def start(self) -> int:
        """First id of this rank."""
        return self.starts[self.collectives.tp.rank]

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's `x` `[rows, n]`, of equal shape, as `[rows, ranks, n]`."""
        sizes = [x.shape[-1]] * self.n_ranks
        return self.collectives.all_gather(x, sizes).view(len(x), self.n_ranks, x.shape[-1])

    def gather_columns(self, local: Tensor) -> Tensor:
        """Whole rows `[rows, vocab_size]` from every rank's `[rows, size]`."""
        return self.collectives.all_gather(local, self.sizes)
