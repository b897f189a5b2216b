"""The codecs in C++ (`csrc/codec.h`), where the extension module was built with them.

Float16, rows that are not contiguous and tensors on other devices go to the reference.
"""

import torch
from torch import Tensor

from sidewinder.extension import module as _native
from sidewinder.ops.codec import reference
from sidewinder.ops.codec.formats import Codec


def is_available() -> bool:
    """Whether the extension module was built and can be loaded."""
    return _native is not None


def encode(x: Tensor, codec: Codec, stripes: int = 1) -> Tensor:
    """As `reference.encode`."""
    if not _is_served(x):
        return reference.encode(x, codec, stripes)
    rows, width = x.shape
    n_bytes = codec.stripe_bytes(rows, width, stripes)
    messages = torch.empty(stripes, n_bytes, dtype=torch.uint8)
    _native.codec_encode(
        x.data_ptr(), x.stride(0), x.dtype == torch.bfloat16, rows, width,
        messages.data_ptr(), stripes, n_bytes, codec.bits,
    )  # fmt: skip
    return messages


def reduce(parts: Tensor, codec: Codec) -> Tensor:
    """As `reference.reduce`."""
    if not parts.is_cpu:
        return reference.reduce(parts, codec)
    parts = _bytes(parts)
    ranks, n_bytes = parts.shape
    total = torch.empty(n_bytes, dtype=torch.uint8)
    _native.codec_reduce(parts.data_ptr(), ranks, n_bytes, total.data_ptr(), codec.bits)
    return total


def decode(parts: Tensor, codec: Codec, out: Tensor) -> Tensor:
    """As `reference.decode`."""
    if not _is_served(out):
        return reference.decode(parts, codec, out)
    parts = _bytes(parts)
    rows, width = out.shape
    _native.codec_decode(
        parts.data_ptr(), *parts.shape,
        out.data_ptr(), out.stride(0), out.dtype == torch.bfloat16, rows, width, codec.bits,
    )  # fmt: skip
    return out


def decode_rms_norm(
    parts: Tensor,
    codec: Codec,
    dtype: torch.dtype,
    weight: Tensor | None,
    eps: float,
    residual: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `reference.decode_rms_norm`."""
    kinds = {dtype} if weight is None else {dtype, weight.dtype}
    if not _is_served(residual) or not kinds <= {torch.float32, torch.bfloat16}:
        return reference.decode_rms_norm(parts, codec, dtype, weight, eps, residual)
    parts = _bytes(parts)
    rows, width = residual.shape
    y = torch.empty(rows, width, dtype=dtype if weight is None else weight.dtype)
    total = torch.empty(rows, width, dtype=residual.dtype)
    _native.codec_decode_norm(
        parts.data_ptr(), *parts.shape, dtype == torch.bfloat16, rows, width, codec.bits,
        _rows(weight), eps, _rows(residual), _rows(y), _rows(total),
    )  # fmt: skip
    return y, total


def _rows(x: Tensor | None) -> tuple[int, int, bool]:
    """Address, row stride, and whether the elements are bfloat16; address 0 for None."""
    if x is None:
        return 0, 0, False
    return x.data_ptr(), x.stride(0) if x.dim() == 2 else 0, x.dtype == torch.bfloat16


def _is_served(x: Tensor) -> bool:
    """Whether the native codecs take these activations, `[rows, width]`."""
    contiguous_rows = x.shape[1] == 1 or x.stride(1) == 1
    return x.is_cpu and x.dtype in (torch.float32, torch.bfloat16) and contiguous_rows


def _bytes(parts: Tensor) -> Tensor:
    assert parts.is_cpu, "messages and activations are on different devices"
    assert parts.dtype == torch.uint8, f"messages are bytes, not {parts.dtype}"
    return parts.contiguous()
