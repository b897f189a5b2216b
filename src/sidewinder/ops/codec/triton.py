"""The codecs in Triton, bit for bit as `reference`; the sum fused with residual and RMS norm."""

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


def encode(x: Tensor, codec: Codec, stripes: int = 1) -> Tensor:
    """As `reference.encode`."""
    assert x.stride(1) == 1 or x.shape[1] == 1, "rows are contiguous"
    rows, width = x.shape
    stripe_bytes = codec.stripe_bytes(rows, width, stripes)
    stripe_groups = codec.stripe_groups(rows, width, stripes)
    messages = torch.empty(stripes, stripe_bytes, dtype=torch.uint8, device=x.device)
    n_groups, block = stripes * stripe_groups, BLOCK_ELEMENTS // codec.group_size
    launch(
        kernels.encode,
        (blocks(n_groups, block),),
        x, x.stride(0), messages, messages.view(torch.int16), rows, width,
        codec.groups_per_row(width), stripe_groups, n_groups, stripe_bytes,
        stripe_groups * codec.payload_bytes,
        BITS=codec.bits, SIZE=codec.group_size, BLOCK=block, enable_fp_fusion=False,
    )  # fmt: skip
    return messages


def reduce(parts: Tensor, codec: Codec) -> Tensor:
    """As `reference.reduce`."""
    parts = parts.contiguous()
    ranks, n_bytes = parts.shape
    n_groups, block = n_bytes // codec.group_bytes, BLOCK_ELEMENTS // codec.group_size
    total = torch.empty(n_bytes, dtype=torch.uint8, device=parts.device)
    launch(
        kernels.reduce,
        (blocks(n_groups, block),),
        parts, parts.view(torch.int16), total, total.view(torch.int16), n_groups, n_bytes,
        n_groups * codec.payload_bytes,
        BITS=codec.bits, SIZE=codec.group_size, RANKS=ranks, BLOCK=block, enable_fp_fusion=False,
    )  # fmt: skip
    return total


def decode(parts: Tensor, codec: Codec, out: Tensor) -> Tensor:
    """As `reference.decode`."""
    assert out.stride(1) == 1 or out.shape[1] == 1, "rows are contiguous"
    rows, width = out.shape
    parts = parts.contiguous()
    launch(
        kernels.decode,
        (rows, blocks(width, BLOCK_COLUMNS)),
        parts, parts.view(torch.int16), out, out.stride(0), *_layout(parts, codec, width),
        BITS=codec.bits, SIZE=codec.group_size, RANKS=parts.shape[0], BLOCK=BLOCK_COLUMNS,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out


def decode_add(parts: Tensor, codec: Codec, dtype: torch.dtype, residual: Tensor) -> Tensor:
    """As `reference.decode_add`; rows of up to 65536."""
    return _fused(parts, codec, dtype, residual, None, 0.0, None)


def decode_rms_norm(
    parts: Tensor,
    codec: Codec,
    dtype: torch.dtype,
    weight: Tensor | None,
    eps: float,
    residual: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `reference.decode_rms_norm`; rows of up to 65536."""
    y_dtype = dtype if weight is None else weight.dtype
    y = torch.empty(residual.shape, dtype=y_dtype, device=residual.device)
    return y, _fused(parts, codec, dtype, residual, weight, eps, y)


def _fused(
    parts: Tensor,
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
    parts = parts.contiguous()
    total = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    launch(
        kernels.decode_normalise,
        (rows,),
        parts, parts.view(torch.int16), residual, residual.stride(0), weight, total, y, eps,
        *_layout(parts, codec, width),
        KIND=KINDS[dtype], BITS=codec.bits, SIZE=codec.group_size, RANKS=parts.shape[0],
        BLOCK=power_of_two(width), num_warps=row_warps(width), enable_fp_fusion=False,
    )  # fmt: skip
    return total


def _layout(parts: Tensor, codec: Codec, width: int) -> tuple[int, ...]:
    """Where things lie in messages `[ranks, stripes, bytes]`, as the decoding kernels take it."""
    _, stripes, stripe_bytes = parts.shape
    stripe_groups = stripe_bytes // codec.group_bytes
    payload_end = stripe_groups * codec.payload_bytes
    return width, codec.groups_per_row(width), stripe_groups, stripes, stripe_bytes, payload_end
