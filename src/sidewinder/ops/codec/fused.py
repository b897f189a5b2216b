"""The decoded sum, added to the residual stream and normalised, out of the parts' own operators."""

import torch
from torch import Tensor

from sidewinder.ops.codec.formats import Codec
from sidewinder.ops.dispatch import Operator
from sidewinder.ops.rms_norm import rms_norm


class FusedByParts:
    """`decode_add` and `decode_rms_norm` as `reference` defines them, on the backends of `decode`.

    Args:
        decode: the operator.
    """

    def __init__(self, decode: Operator[[Tensor, Codec, Tensor], Tensor]) -> None:
        self._decode = decode

    def decode_add(
        self, parts: Tensor, codec: Codec, dtype: torch.dtype, residual: Tensor
    ) -> Tensor:
        """As `reference.decode_add`."""
        return self._delta(parts, codec, dtype, residual).to(residual.dtype) + residual

    def decode_rms_norm(
        self,
        parts: Tensor,
        codec: Codec,
        dtype: torch.dtype,
        weight: Tensor | None,
        eps: float,
        residual: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As `reference.decode_rms_norm`."""
        return rms_norm(self._delta(parts, codec, dtype, residual), weight, eps, residual)

    def _delta(self, parts: Tensor, codec: Codec, dtype: torch.dtype, like: Tensor) -> Tensor:
        out = torch.empty(like.shape, dtype=dtype, device=like.device)
        return self._decode(parts, codec, out)
