"""Quantised sums of deltas over any transport.

Two ranks exchange their encoded parts and sum them ("one-shot": one rounding). More ranks sum a
stripe each, encode it again, and exchange the sums ("two-shot": two roundings, whatever the number
of ranks). The choice depends on the number of ranks alone, since the two round differently. Every
rank decodes the same bytes, its own included, so that all hold the same bits.
"""

import torch
from torch import Tensor

from sidewinder.collectives.base import Collectives, Pending
from sidewinder.collectives.quantised.policy import Policy
from sidewinder.collectives.wrapper import Wrapper
from sidewinder.config import ModelConfig
from sidewinder.ops.codec import Codec, decode, decode_rms_norm, encode, reduce

PIECE_BYTES = 512 * 1024
"""Activations that travel as one message over TCP."""


def quantised(inner: Collectives, policy: Policy, config: ModelConfig) -> Collectives:
    """`inner`, with deltas summed as `policy` says.

    Raises:
        ValueError: if the policy names a site that the model does not have.
    """
    policy.check_sites(config)
    if policy.is_exact or inner.tp.size == 1:
        return inner
    return QuantisedCollectives(inner, policy)


class QuantisedCollectives(Wrapper):
    """`inner`, but `all_reduce_delta` sends few bits where the policy says so.

    Args:
        inner: moves the bytes, and does everything else.
        policy: the codec of each site; the same on every rank.
    """

    def __init__(self, inner: Collectives, policy: Policy) -> None:
        super().__init__(inner)
        self.path = f"{inner.path}; deltas {policy}"
        self._bulk = inner.bulk()
        self._policy = policy

    def all_reduce_delta(self, x: Tensor, site: str, n_decodes: int) -> Tensor:
        return self.start_all_reduce_delta(x, site, n_decodes).wait()

    def start_all_reduce_delta(self, x: Tensor, site: str, n_decodes: int) -> Pending:
        codecs = self._policy.at(site)
        if codecs.prefill is codecs.decode:
            return self._start(x, codecs.prefill)
        decodes = self._start(x[:n_decodes], codecs.decode)
        prefill = self._start(x[n_decodes:], codecs.prefill)

        def advance() -> None:
            decodes.advance()
            prefill.advance()

        return Pending(lambda: torch.cat([decodes.wait(), prefill.wait()]), advance)

    def is_exact(self, site: str) -> bool:
        codecs = self._policy.at(site)
        return codecs.prefill is None and codecs.decode is None

    def _start(self, x: Tensor, codec: Codec | None) -> Pending:
        if x.numel() == 0:
            return Pending.done(x)
        if codec is None:
            return self._bulk.start_all_reduce(x)
        if (direct := self._bulk.start_quantised(x, codec)) is not None:
            return direct
        if self.tp.size > 2:
            return self._start_two_shot(x, codec)
        rows = len(x)
        if self.overlaps and x.is_cpu:
            # One piece is encoded, or decoded, while another travels.
            rows = max(1, PIECE_BYTES // (x.shape[1] * x.element_size()))
        pieces = [self._start_one_shot(piece, codec) for piece in torch.split(x, rows)]
        if len(pieces) == 1:
            return pieces[0]

        def finish() -> Tensor:
            for piece in pieces:
                piece.wait()
            return x

        return Pending(finish)

    def _start_one_shot(self, x: Tensor, codec: Codec) -> Pending:
        messages = self._start_gather(encode(x, codec))
        return self._decoded(messages, (self.tp.size, 1), codec, x)

    def _start_two_shot(self, x: Tensor, codec: Codec) -> Pending:
        stripes = self._bulk.start_all_to_all(encode(x, codec, self.tp.size))

        def exchange_sums() -> Pending:
            total = reduce(stripes.wait(), codec)
            sums = self._start_gather(total[None])
            return self._decoded(sums, (1, self.tp.size), codec, x)

        return Pending.in_two(exchange_sums)

    def _decoded(
        self, messages: Pending, shape: tuple[int, int], codec: Codec, x: Tensor
    ) -> Pending:
        """The sum of messages `[parts, stripes, bytes]`, `shape` being of the first two: in `x`, or
        normed and in tensors of its own."""

        def parts() -> Tensor:
            return messages.wait().view(*shape, -1)

        return Pending(
            lambda: decode(parts(), codec, x),
            finish_normed=lambda weight, eps, residual: decode_rms_norm(
                parts(), codec, x.dtype, weight, eps, residual
            ),
        )

    def _start_gather(self, message: Tensor) -> Pending:
        """Every rank's `[1, bytes]`, end to end."""
        return self._bulk.start_all_gather(message, [message.shape[1]] * self.tp.size)
