"""The codecs in Triton, bit for bit as `reference`; the sum fused with residual and RMS norm.

Functions of the plain names have parts in one tensor. Those with `Parts` also read what lies in
other ranks' memory, so that nothing has to be copied together first.
"""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from sidewinder.ops.codec import kernels
from sidewinder.ops.codec.formats import Codec
from sidewinder.ops.launching import blocks, launch, power_of_two
from sidewinder.ops.rms_norm.triton import row_warps

BLOCK_ELEMENTS = 2048
"""Elements of the groups that one program encodes: 16 a thread."""
BLOCK_COLUMNS = 1024
KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class Parts:
    """Messages of several ranks.

    Attributes:
        memory: uint8, contiguous; what offsets count from.
        ranks: whose parts are summed; 1 where every rank has one stripe of the sum.
        stripes, stripe_bytes: of the whole message; bytes of each stripe's.
        places: int64 `[ranks]`, how many bytes behind `memory` each rank's buffer is, which may be
            another allocation; None if parts lie in `memory`, end to end.
        first: bytes into each rank's buffer.
        by_stripe: `places` are those of the stripes.
    """

    memory: Tensor
    ranks: int
    stripes: int
    stripe_bytes: int
    places: Tensor | None = None
    first: int = 0
    by_stripe: bool = False

    @staticmethod
    def of(parts: Tensor) -> "Parts":
        """Messages `[ranks, stripes, bytes]`."""
        return Parts(parts.contiguous(), *parts.shape)

    @property
    def where(self) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """As kernels take it: bytes, halves, places, and the offset."""
        return self.memory, self.memory.view(torch.int16), self.places, self.first

    def layout(self, codec: Codec, width: int) -> tuple[int, ...]:
        """Where things lie in a message, as the decoding kernels take it."""
        stripe_groups = self.stripe_bytes // codec.group_bytes
        payload_end = stripe_groups * codec.payload_bytes
        return (
            width, codec.groups_per_row(width), stripe_groups, self.stripes, self.stripe_bytes,
            payload_end,
        )  # fmt: skip


def encode(x: Tensor, codec: Codec, stripes: int = 1) -> Tensor:
    """As `reference.encode`."""
    rows, width = x.shape
    n_bytes = codec.stripe_bytes(rows, width, stripes)
    messages = torch.empty(stripes, n_bytes, dtype=torch.uint8, device=x.device)
    encode_into(x, codec, messages)
    return messages


def encode_into(x: Tensor, codec: Codec, messages: Tensor) -> None:
    """`encode` into `messages`, uint8 `[stripes, bytes]`, contiguous."""
    assert x.stride(1) == 1 or x.shape[1] == 1, "rows are contiguous"
    rows, width = x.shape
    stripes, stripe_bytes = messages.shape
    stripe_groups = codec.stripe_groups(rows, width, stripes)
    n_groups, block = stripes * stripe_groups, BLOCK_ELEMENTS // codec.group_size
    launch(
        kernels.encode,
        (blocks(n_groups, block),),
        x, x.stride(0), messages, messages.view(torch.int16), rows, width,
        codec.groups_per_row(width), stripe_groups, n_groups, stripe_bytes,
        stripe_groups * codec.payload_bytes,
        BITS=codec.bits, SIZE=codec.group_size, BLOCK=block, enable_fp_fusion=False,
    )  # fmt: skip


def reduce(parts: Tensor, codec: Codec) -> Tensor:
    """As `reference.reduce`."""
    total = torch.empty(parts.shape[1], dtype=torch.uint8, device=parts.device)
    reduce_into(Parts.of(parts[:, None]), codec, total)
    return total


def reduce_into(parts: Parts, codec: Codec, total: Tensor) -> None:
    """`reduce` of one stripe of `parts` into `total`, uint8 `[stripe_bytes]`, contiguous."""
    n_groups = parts.stripe_bytes // codec.group_bytes
    block = BLOCK_ELEMENTS // codec.group_size
    launch(
        kernels.reduce,
        (blocks(n_groups, block),),
        *parts.where, total, total.view(torch.int16), n_groups, parts.stripe_bytes,
        n_groups * codec.payload_bytes,
        BITS=codec.bits, SIZE=codec.group_size, RANKS=parts.ranks, BLOCK=block,
        enable_fp_fusion=False,
    )  # fmt: skip


def decode(parts: Tensor, codec: Codec, out: Tensor) -> Tensor:
    """As `reference.decode`."""
    return decode_parts(Parts.of(parts), codec, out)


def decode_parts(parts: Parts, codec: Codec, out: Tensor) -> Tensor:
    """`decode`."""
    assert out.stride(1) == 1 or out.shape[1] == 1, "rows are contiguous"
    rows, width = out.shape
    launch(
        kernels.decode,
        (rows, blocks(width, BLOCK_COLUMNS)),
        *parts.where, out, out.stride(0), *parts.layout(codec, width),
        BITS=codec.bits, SIZE=codec.group_size, RANKS=parts.ranks, BY_STRIPE=parts.by_stripe,
        BLOCK=BLOCK_COLUMNS, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def decode_add(parts: Tensor, codec: Codec, dtype: torch.dtype, residual: Tensor) -> Tensor:
    """As `reference.decode_add`; rows of up to 65536."""
    return _fused(Parts.of(parts), codec, dtype, residual, None, 0.0, None)


def decode_rms_norm(
    parts: Tensor,
    codec: Codec,
    dtype: torch.dtype,
    weight: Tensor | None,
    eps: float,
    residual: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `reference.decode_rms_norm`; rows of up to 65536."""
    return decode_rms_norm_parts(Parts.of(parts), codec, dtype, weight, eps, residual)


def decode_rms_norm_parts(
    parts: Parts,
    codec: Codec,
    dtype: torch.dtype,
    weight: Tensor | None,
    eps: float,
    residual: Tensor,
) -> tuple[Tensor, Tensor]:
    """`decode_rms_norm`."""
    y_dtype = dtype if weight is None else weight.dtype
    y = torch.empty(residual.shape, dtype=y_dtype, device=residual.device)
    return y, _fused(parts, codec, dtype, residual, weight, eps, y)


def _fused(
    parts: Parts,
    codec: Codec,
    dtype: torch.dtype,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    y: Tensor | None,
) -> Tensor:
    """The sum with the residual; its norm goes into `y`."""
    assert residual.stride(1) == 1 or residual.shape[1] == 1, "rows are contiguous"
    rows, width = residual.shape
    total = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    launch(
        kernels.decode_normalise,
        (rows,),
        *parts.where, residual, residual.stride(0), weight, total, y, eps,
        *parts.layout(codec, width),
        KIND=KINDS[dtype], BITS=codec.bits, SIZE=codec.group_size, RANKS=parts.ranks,
        BY_STRIPE=parts.by_stripe, BLOCK=power_of_two(width), num_warps=row_warps(width),
        enable_fp_fusion=False,
    )  # fmt: skip
    return total
