"""Embedding and logits, split over ranks by vocabulary rows."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from sidewinder.collectives.base import Collectives
from sidewinder.layers.weights import Weight
from sidewinder.ops.linear import linear
from sidewinder.packing import PackedWeight
from sidewinder.quantise import QuantisedWeight
from sidewinder.sharding.shares import Share


class VocabParallelEmbedding:
    """`[T]` token ids to `[T, d_model]`: each rank looks up its own rows; one exact sum.

    Args:
        weight: `[vocab_local, d_model]`; packed if it is also the head.
        rows: which rows of the vocabulary these are.
        collectives: the ranks that hold the others.
    """

    def __init__(self, weight: Weight, rows: Share, collectives: Collectives) -> None:
        assert not isinstance(weight, QuantisedWeight), "a table is looked up as it is"
        self.weight = weight
        self.rows = rows
        self.collectives = collectives

    def __call__(self, token_ids: Tensor) -> Tensor:
        if self.collectives.tp.size == 1:
            return self._lookup(token_ids)
        elsewhere = (token_ids < self.rows.start) | (token_ids >= self.rows.stop)
        local = (token_ids - self.rows.start).masked_fill(elsewhere, 0)
        # Every other rank adds zero to a token's row, so the sum is exact in any dtype.
        found = self._lookup(local).masked_fill(elsewhere[:, None], 0)
        return self.collectives.all_reduce(found)

    def _lookup(self, rows: Tensor) -> Tensor:
        if isinstance(self.weight, PackedWeight):
            return self.weight.lookup(rows)
        return F.embedding(rows, self.weight)


class VocabParallelLogits:
    """`[rows, d_model]` to float32 logits `[rows, vocab_size]`, gathered on every rank.

    Args:
        weight: `[vocab_local, d_model]`; the embedding's own where they are tied and it is not
            rounded.
        vocab_sizes: rows of each rank.
        collectives: the ranks to gather from.
        divisor: of the logits.
    """

    def __init__(
        self,
        weight: Weight,
        vocab_sizes: Sequence[int],
        collectives: Collectives,
        divisor: float = 1.0,
    ) -> None:
        self.weight = weight
        self.vocab_sizes = vocab_sizes
        self.collectives = collectives
        self.divisor = divisor

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.collectives.all_gather(self.local(hidden), self.vocab_sizes).float()

    def local(self, hidden: Tensor) -> Tensor:
        """Logits of this rank's rows only, `[rows, vocab_local]` in the activations' dtype."""
        logits = linear(hidden, self.weight)
        return logits if self.divisor == 1 else logits / self.divisor
