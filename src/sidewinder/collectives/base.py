"""The few verbs that ranks use to talk. Layers know this interface and nothing of its transport."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from sidewinder.ops.codec.formats import Codec
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.parallel.group import SINGLE, TensorParallel


class Pending:
    """A result that is on its way: `wait` for it once.

    Args:
        finish: what `wait` does; it returns the result.
        advance: what `advance` does, any number of times before `finish`.
        finish_normed: what `normed` does, if there is a shorter way than after `finish`.
    """

    def __init__(
        self,
        finish: Callable[[], Tensor],
        advance: Callable[[], None] | None = None,
        finish_normed: Callable[[Tensor, float, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self._finish = finish
        self._advance = advance
        self._finish_normed = finish_normed

    @staticmethod
    def in_two(step: Callable[[], "Pending"]) -> "Pending":
        """A result of two exchanges: `step` waits for the first and starts the second."""
        second: list[Pending] = []

        def advance() -> None:
            if not second:
                second.append(step())

        def last() -> Pending:
            advance()
            return second[0]

        return Pending(lambda: last().wait(), advance, lambda *norm_args: last().normed(*norm_args))

    def advance(self) -> None:
        """Start what can follow now: of two exchanges the second, which waits for the first.

        For the middle of what the result is hidden behind. Every rank advances at the same place;
        who never does pays for the second exchange in `wait`.
        """
        if self._advance is not None:
            self._advance()

    def wait(self) -> Tensor:
        """The result, the same bits as of the verb that does not only start."""
        return self._finish()

    def normed(self, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]:
        """`rms_norm(wait(), weight, eps, residual)`, the same bits, in one pass where that can be.

        Returns:
            The norm of the result plus `residual`, and this sum.
        """
        if self._finish_normed is None:
            return rms_norm(self.wait(), weight, eps, residual)
        return self._finish_normed(weight, eps, residual)

    def then(self, change: Callable[[Tensor], Tensor]) -> "Pending":
        """The changed result; the change is made when it is waited for."""
        return Pending(lambda: change(self._finish()), self._advance)

    @staticmethod
    def done(result: Tensor) -> "Pending":
        """A result that is there already."""
        return Pending(lambda: result)


class Collectives(Protocol):
    """Communication among one group's ranks; each makes the same calls in the same order.

    All results are bit-identical on all ranks: sums are formed in rank order, or by one rank.
    Verbs with a body serve every transport that has no better way; wrappers pass them on.

    `start_` verbs return before all ranks have come, where the transport can (`overlaps`). Until
    `wait`, what was given belongs to the transport. Every rank starts and waits in the same order;
    other verbs may come between, and several results may be on their way.
    """

    tp: TensorParallel
    path: str
    """Transport in use, for the start-up line: "none", "threads", "gloo", "nccl", ..."""
    overlaps: bool = False
    """Whether messages that were started travel while this rank computes."""
    capturable: bool = False
    """Whether verbs can be recorded in a CUDA graph: nothing in them waits on the host."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum of every rank's `x` (of equal shape and dtype). May overwrite and return `x`."""
        ...

    def all_reduce_delta(self, x: Tensor, site: str, n_decodes: int) -> Tensor:  # noqa: ARG002
        """Sum of every rank's `x`, a delta `[T, d_model]`; the only sum that may be quantised.

        Args:
            x: this rank's term; may be overwritten and returned.
            site: the projection that made it, by the name of its parameters.
            n_decodes: leading rows that are tokens of decoding sequences; the others are prefill.
        """
        return self.all_reduce(x)

    def start_all_reduce(self, x: Tensor) -> Pending:
        """`all_reduce`, begun."""
        return Pending.done(self.all_reduce(x))

    def start_all_reduce_delta(self, x: Tensor, site: str, n_decodes: int) -> Pending:
        """`all_reduce_delta`, begun."""
        return Pending.done(self.all_reduce_delta(x, site, n_decodes))

    def start_all_gather(self, x: Tensor, sizes: Sequence[int]) -> Pending:
        """`all_gather`, begun."""
        return Pending.done(self.all_gather(x, sizes))

    def start_all_to_all(self, x: Tensor) -> Pending:
        """`all_to_all`, begun."""
        return Pending.done(self.all_to_all(x))

    def start_quantised(self, x: Tensor, codec: Codec) -> Pending | None:  # noqa: ARG002
        """The quantised sum of every rank's `x` `[T, d]`, begun; it may overwrite and return `x`.

        None, on every rank, where the transport has no better way than gathers and exchanges.
        """
        return None

    def bulk(self) -> "Collectives":
        """The same group for long messages that others may overtake; itself if nothing overtakes.

        The order of calls holds for each of the two by itself.
        """
        return self

    @property
    def waited_s(self) -> float:
        """Seconds that this rank has waited for other ranks' messages; 0 where nobody counts."""
        return 0.0

    def is_exact(self, site: str) -> bool:  # noqa: ARG002
        """Whether `all_reduce_delta` is `all_reduce` at this site."""
        return True

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Concatenate along the last dimension in rank order; rank `r` gives `[..., sizes[r]]`."""
        ...

    def all_to_all(self, x: Tensor) -> Tensor:
        """Row `q` of rank `r`'s `x` `[ranks, n]` becomes row `r` of rank `q`'s result."""
        ranks = self.tp.size
        parts = self.all_gather(x.reshape(1, -1), [x.numel()] * ranks)
        return parts.view(ranks, ranks, -1)[:, self.tp.rank]

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        """Rank `root`'s `x` on every rank. May overwrite and return `x`."""
        ...

    def barrier(self) -> None:
        """Return once every rank has called."""
        ...

    def subgroup(self, partition: Sequence[Sequence[int]]) -> "Collectives":
        """The group of this rank within `partition`; every rank calls with the same partition."""
        ...

    def close(self) -> None:
        """Release transports. Calling twice is fine."""
        ...


class SingleRank(Collectives):
    """The group of one rank: every verb is the identity."""

    def __init__(self, tp: TensorParallel = SINGLE) -> None:
        if tp.size != 1:
            raise ValueError(f"SingleRank serves tp=1, not tp={tp.size}")
        self.tp = tp
        self.path = "none"
        self.capturable = True

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        assert list(sizes) == [x.shape[-1]]
        return x

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        assert root == 0
        return x

    def barrier(self) -> None:
        return None

    def subgroup(self, partition: Sequence[Sequence[int]]) -> "SingleRank":
        assert [list(group) for group in partition] == [[0]]
        return self

    def close(self) -> None:
        return None
