"""Quantised sums of deltas over any transport.

Two ranks exchange their encoded parts and sum them ("one-shot": one rounding). More ranks sum a
stripe each, encode it again, and exchange the sums ("two-shot": two roundings, whatever the number
of ranks). The choice depends on the number of ranks alone, since the two round differently. Every
rank decodes the same bytes, its own included, so that all hold the same bits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives
from sidewinder.collectives.quantised.policy import Policy
from sidewinder.config import ModelConfig
from sidewinder.ops.codec import Codec, decode, encode, reduce


def quantised(inner: Collectives, policy: Policy, config: ModelConfig) -> Collectives:
    """`inner`, with deltas summed as `policy` says.

    Raises:
        ValueError: if the policy names a site that the model does not have.
    """
    policy.check_sites(config)
    if policy.is_exact or inner.tp.size == 1:
        return inner
    return QuantisedCollectives(inner, policy)


class QuantisedCollectives(Collectives):
    """`inner`, but `all_reduce_delta` sends few bits where the policy says so.

    Args:
        inner: moves the bytes, and does everything else.
        policy: the codec of each site; the same on every rank.
    """

    def __init__(self, inner: Collectives, policy: Policy) -> None:
        self.tp = inner.tp
        self.path = f"{inner.path}; deltas {policy}"
        self._inner = inner
        self._policy = policy

    def all_reduce_delta(self, x: Tensor, site: str, n_decodes: int) -> Tensor:
        codecs = self._policy.at(site)
        if codecs.prefill is codecs.decode:
            return self._sum(x, codecs.prefill)
        parts = (x[:n_decodes], codecs.decode), (x[n_decodes:], codecs.prefill)
        return torch.cat([self._sum(part, codec) for part, codec in parts])

    def is_exact(self, site: str) -> bool:
        codecs = self._policy.at(site)
        return codecs.prefill is None and codecs.decode is None

    def _sum(self, x: Tensor, codec: Codec | None) -> Tensor:
        if x.numel() == 0:
            return x
        if codec is None:
            return self._inner.all_reduce(x)
        ranks = self.tp.size
        if ranks == 2:
            message = encode(x, codec)
            return decode(self._gather(message).view(ranks, 1, -1), codec, x)
        stripes = self._inner.all_to_all(encode(x, codec, ranks))
        total = reduce(stripes, codec)
        return decode(self._gather(total[None]).view(1, ranks, -1), codec, x)

    def _gather(self, message: Tensor) -> Tensor:
        """Every rank's `[1, bytes]`, end to end."""
        return self._inner.all_gather(message, [message.shape[1]] * self.tp.size)

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._inner.all_reduce(x)

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        return self._inner.all_gather(x, sizes)

    def all_to_all(self, x: Tensor) -> Tensor:
        return self._inner.all_to_all(x)

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        return self._inner.broadcast(x, root)

    def barrier(self) -> None:
        self._inner.barrier()

    def subgroup(self, partition: Sequence[Sequence[int]]) -> Collectives:
        return self._inner.subgroup(partition)

    def close(self) -> None:
        self._inner.close()
