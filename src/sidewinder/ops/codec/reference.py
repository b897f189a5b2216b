"""The codecs in torch: the definition, bit for bit, of what the native ones do.

Arithmetic is float32, rounding is to nearest even, out-of-range integers saturate. A group's scale
is `-extreme / levels`, where the extreme is its element of largest magnitude (the positive one of
two): so the extreme becomes `-levels`, and no code is wasted. The scale is rounded to bfloat16,
whose range is float32's, and its magnitude kept between the smallest normal number and what cannot
overflow when it is multiplied back. A group with a NaN or infinity gets a NaN for its scale, and
comes out as NaN as a whole. Integers times scales are exact in float32, and are summed in the order
of ranks, rounded once to the result's dtype.
"""

import torch
from torch import Tensor

from sidewinder.collectives.rank_order import sum_in_rank_order
from sidewinder.ops.codec.formats import Codec
from sidewinder.ops.rms_norm import reference as norm_reference

SMALLEST_SCALE = 2.0**-126
LARGEST_BF16 = torch.finfo(torch.bfloat16).max


def encode(x: Tensor, codec: Codec, stripes: int = 1) -> Tensor:
    """Messages of equal stripes.

    Args:
        x: `[rows, width]`, floating point, not empty.
        codec: the format.
        stripes: into how many messages; at least 1.

    Returns:
        uint8 `[stripes, codec.stripe_bytes(rows, width, stripes)]`.
    """
    rows, width = x.shape
    per_row, g = codec.groups_per_row(width), codec.group_size
    n_groups = stripes * codec.stripe_groups(rows, width, stripes)
    padded = torch.zeros(rows, per_row * g, device=x.device)
    padded[:, :width] = x
    groups = torch.zeros(n_groups, g, device=x.device)
    groups[: rows * per_row] = padded.view(rows * per_row, g)
    return _encode_groups(groups.view(stripes, n_groups // stripes, g), codec)


def reduce(parts: Tensor, codec: Codec) -> Tensor:
    """The sum of one stripe over ranks, encoded again.

    Args:
        parts: uint8 `[ranks, bytes]`, every rank's message of the stripe.
        codec: their format.

    Returns:
        uint8 `[bytes]`.
    """
    total = sum_in_rank_order(_decode_groups(parts, codec))
    return _encode_groups(total[None], codec)[0]


def decode(parts: Tensor, codec: Codec, out: Tensor) -> Tensor:
    """The sum over ranks of what their messages hold, written into `out`.

    Args:
        parts: uint8 `[ranks, stripes, bytes]`.
        codec: their format.
        out: `[rows, width]`, floating point, not empty; any content.

    Returns:
        `out`.
    """
    rows, width = out.shape
    per_row = codec.groups_per_row(width)
    total = sum_in_rank_order(_decode_groups(parts, codec))
    used = total.flatten(0, 1)[: rows * per_row]
    return out.copy_(used.reshape(rows, per_row * codec.group_size)[:, :width])


def decode_add(parts: Tensor, codec: Codec, dtype: torch.dtype, residual: Tensor) -> Tensor:
    """The decoded sum, rounded to `dtype`, and the residual added to it.

    Args:
        parts: uint8 `[ranks, stripes, bytes]`.
        codec: their format.
        dtype: of the sum over ranks (the activations').
        residual: `[rows, width]`.

    Returns:
        `[rows, width]` in residual's dtype.
    """
    out = torch.empty(residual.shape, dtype=dtype, device=residual.device)
    return decode(parts, codec, out).to(residual.dtype) + residual


def decode_rms_norm(
    parts: Tensor,
    codec: Codec,
    dtype: torch.dtype,
    weight: Tensor | None,
    eps: float,
    residual: Tensor,
) -> tuple[Tensor, Tensor]:
    """The RMS norm of `decode_add`, and `decode_add` itself.

    Args:
        parts, codec, dtype, residual: as in `decode_add`.
        weight, eps: as in `rms_norm`.

    Returns:
        `(y, sum)`, `[rows, width]` each: y in weight's dtype (`dtype` without one), the sum in
        residual's.
    """
    out = decode(parts, codec, torch.empty(residual.shape, dtype=dtype, device=residual.device))
    y, total = norm_reference.rms_norm(out, weight, eps, residual)
    return y, total


def _encode_groups(groups: Tensor, codec: Codec) -> Tensor:
    """float32 `[stripes, groups, group_size]` to uint8 `[stripes, bytes]`."""
    if codec.bits == 16:
        return groups.to(torch.bfloat16).flatten(1).view(torch.uint8)
    scales = _scales(groups, codec)
    values = (groups * (1 / scales)[..., None]).round().clamp(-codec.levels, codec.levels - 1)
    values = torch.where(scales.isnan()[..., None], 0, values).to(torch.int32)
    payload = _pack(values, codec).flatten(1)
    high_halves = (scales.view(torch.int32) >> 16).to(torch.int16)
    return torch.cat([payload, high_halves.view(torch.uint8)], dim=1)


def _scales(groups: Tensor, codec: Codec) -> Tensor:
    """float32 `[...]` of groups `[..., group_size]`; every one a bfloat16."""
    magnitude = groups.abs().amax(-1)
    scale = (magnitude / codec.levels).to(torch.bfloat16).to(torch.float32)
    scale = scale.clamp(SMALLEST_SCALE, LARGEST_BF16 / codec.levels)
    negative = (groups.amax(-1) == magnitude) & (magnitude > 0)
    scale = torch.where(negative, -scale, scale)
    return torch.where(magnitude.isfinite(), scale, torch.nan)


def _decode_groups(messages: Tensor, codec: Codec) -> Tensor:
    """uint8 `[..., bytes]` to float32 `[..., groups, group_size]`."""
    *leading, n_bytes = messages.shape
    n_groups = n_bytes // codec.group_bytes
    payload_end = n_groups * codec.payload_bytes
    payload = messages[..., :payload_end].reshape(*leading, n_groups, codec.payload_bytes)
    if codec.bits == 16:
        return payload.view(torch.bfloat16).to(torch.float32)
    scales = messages[..., payload_end:].contiguous().view(torch.bfloat16).to(torch.float32)
    return _unpack(payload, codec).to(torch.float32) * scales[..., None]


def _pack(values: Tensor, codec: Codec) -> Tensor:
    """int32 `[..., group_size]`, in range, to uint8 `[..., payload_bytes]`.

    int8: two's complement. Others are stored plus `levels`, hence not negative: int4 has element j
    in the low and element j + 16 in the high half of byte j; int6 has the low four bits of each
    element so, and then in byte 16 + j the high two bits of elements j, j + 8, j + 16, j + 24,
    lowest first.
    """
    if codec.bits == 8:
        return values.to(torch.int8).view(torch.uint8)
    codes = values + codec.levels
    halves = codes & 15
    packed = halves[..., :16] | halves[..., 16:] << 4
    if codec.bits == 6:
        quarters = (codes >> 4).view(*codes.shape[:-1], 4, 8)
        shifts = torch.tensor([0, 2, 4, 6], dtype=torch.int32, device=values.device)
        packed = torch.cat([packed, (quarters << shifts[:, None]).sum(-2, dtype=torch.int32)], -1)
    return packed.to(torch.uint8)


def _unpack(payload: Tensor, codec: Codec) -> Tensor:
    """The inverse of `_pack`, as integers of any dtype."""
    if codec.bits == 8:
        return payload.view(torch.int8)
    codes = payload.to(torch.int32)
    halves = torch.cat([codes[..., :16] & 15, codes[..., :16] >> 4], dim=-1)
    if codec.bits == 6:
        shifts = torch.tensor([0, 2, 4, 6], dtype=torch.int32, device=payload.device)
        quarters = (codes[..., None, 16:] >> shifts[:, None]) & 3
        halves = halves | quarters.flatten(-2) << 4
    return halves - codec.levels
