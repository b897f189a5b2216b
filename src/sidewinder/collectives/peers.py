"""Memory that every rank's device can read: what `symmetric` builds on, whatever the device."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.parallel.group import TensorParallel


class Peers(Protocol):
    """One buffer of each rank, which all of them can read.

    Attributes:
        n_bytes: of each buffer, for all verbs.
        direct_bytes: of each of two more regions behind that, for quantised sums; 0 for none.
        buffers: uint8 of every rank, in rank order.
        places: int64 `[ranks]` on the device: how many bytes behind this rank's buffer each one is.
    """

    n_bytes: int
    direct_bytes: int
    buffers: Sequence[Tensor]
    places: Tensor

    def meet(self) -> None:
        """What every rank wrote before is there for all, and what it read has been read."""
        ...

    def fused_sum(self, n: int, dtype: torch.dtype) -> Tensor | None:
        """The sum over ranks of the first `n` elements of each buffer, meeting before and after.

        The same bits on all ranks, in an order of its own; None where no kernel does that.
        """
        ...

    def beside(self, run: Callable[[], Tensor]) -> Pending:
        """`run()` on a stream of its own, after all that was asked for so far."""
        ...

    def catch_up(self) -> None:
        """Let what follows on this stream come after all that runs beside."""
        ...

    def subgroup(self, ranks: Sequence[int], tp: TensorParallel, inner: Collectives) -> "Peers":
        """Peers of some of the ranks; `inner` is their transport, `tp` this rank's place there."""
        ...

    def close(self) -> None:
        """Release the buffers."""
        ...
