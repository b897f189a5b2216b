"""Quantised sums that are encoded into one's own buffer and decoded out of everybody's.

Nothing is copied together first. Two ranks meet, encode, meet, and read both messages in the pass
that adds the residual and norms ("one-shot"). More ranks meet, encode, meet, sum a stripe each,
meet, and read everybody's ("two-shot"). The first meeting says that all have read what lay in the
region before, the last message but one: there are two regions. Same bits as over other transports.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from sidewinder.collectives.base import Pending
from sidewinder.collectives.peers import Peers
from sidewinder.ops.codec.formats import Codec
from sidewinder.ops.dispatch import forced_backend
from sidewinder.ops.launching import is_installed, serves_any_device
from sidewinder.parallel.group import TensorParallel

if TYPE_CHECKING:
    from sidewinder.ops.codec.triton import Parts


class DirectSums:
    """Sums over the ranks of `peers`; every rank makes the same calls.

    Args:
        tp: this rank.
        peers: with two regions for messages.
    """

    def __init__(self, tp: TensorParallel, peers: Peers) -> None:
        self._tp, self._peers = tp, peers
        self._turn = 0

    def start(self, x: Tensor, codec: Codec) -> Pending | None:
        """The sum of every rank's `x` `[T, d]`, begun; the result of `wait` is in `x`.

        None where it does not fit, or the kernels that read several buffers cannot run here.
        """
        stripes = self._tp.size if self._tp.size > 2 else 1
        rows, width = x.shape
        stripe_bytes = codec.stripe_bytes(rows, width, stripes)
        # Two-shot: the stripe that this rank sums lies behind its message.
        n_bytes = (stripes + (stripes > 1)) * stripe_bytes
        if n_bytes > self._peers.direct_bytes or not _kernels_run(x):
            return None
        first = self._peers.n_bytes + self._turn * self._peers.direct_bytes
        self._turn = 1 - self._turn
        message = _Message(self._tp, self._peers, codec, first, stripes, stripe_bytes)
        exchanged = self._peers.beside(lambda: message.exchange(x))

        def finish() -> Tensor:
            exchanged.wait()
            return message.decode(x)

        def finish_normed(weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]:
            exchanged.wait()
            return message.decode_normed(x, weight, eps, residual)

        return Pending(finish, finish_normed=finish_normed)


def _kernels_run(x: Tensor) -> bool:
    """Whether Triton's kernels do: they alone can read several allocations."""
    if not is_installed():
        return False
    return x.is_cuda or (serves_any_device() and forced_backend() == "triton")


class _Message:
    """One use of a region."""

    def __init__(
        self,
        tp: TensorParallel,
        peers: Peers,
        codec: Codec,
        first: int,
        stripes: int,
        stripe_bytes: int,
    ) -> None:
        # Not at the top of the module: Triton takes long to import, and most ranks do without.
        from sidewinder.ops.codec import triton

        self._kernels = triton
        self._tp, self._peers, self._codec = tp, peers, codec
        self._stripes, self._stripe_bytes = stripes, stripe_bytes
        self._first, self._behind = first, first + stripes * stripe_bytes
        self._own = peers.buffers[tp.rank]

    def exchange(self, x: Tensor) -> Tensor:
        """All up to where every rank can read the sum, or the parts of it."""
        message = self._own[self._first : self._behind].view(self._stripes, -1)
        self._peers.meet()
        self._kernels.encode_into(x, self._codec, message)
        self._peers.meet()
        if self._stripes > 1:
            mine = self._parts(self._first + self._tp.rank * self._stripe_bytes)
            total = self._own[self._behind : self._behind + self._stripe_bytes]
            self._kernels.reduce_into(mine, self._codec, total)
            self._peers.meet()
        return message

    def decode(self, x: Tensor) -> Tensor:
        """The sum, in `x`."""
        return self._kernels.decode_parts(self._readable(), self._codec, x)

    def decode_normed(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sum in `x`'s dtype, with the residual and normed."""
        return self._kernels.decode_rms_norm_parts(
            self._readable(), self._codec, x.dtype, weight, eps, residual
        )

    def _readable(self) -> "Parts":
        """What every rank decodes: two ranks' parts, or each rank's stripe of the sum."""
        if self._stripes == 1:
            return self._parts(self._first)
        return self._parts(self._behind, ranks=1, by_stripe=True)

    def _parts(self, first: int, ranks: int | None = None, by_stripe: bool = False) -> "Parts":
        return self._kernels.Parts(
            self._own,
            self._tp.size if ranks is None else ranks,
            self._stripes,
            self._stripe_bytes,
            self._peers.places,
            first,
            by_stripe,
        )
