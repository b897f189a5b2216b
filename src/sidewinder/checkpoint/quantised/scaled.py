"""Matrices whose codes and scales are stored as the matrix is: `[rows, columns]`, or
`[experts, rows, columns]`. compressed-tensors, ModelOpt and others name them alike."""

import math
from dataclasses import replace

import torch

from sidewinder.checkpoint.layouts import Shape, View
from sidewinder.checkpoint.quantised.config import Block, Quantisation
from sidewinder.checkpoint.quantised.parts import Parts, dtype_name, per_block, words_of
from sidewinder.checkpoint.quantised.views import (
    Dequantised,
    PackedFloats,
    PackedIntegers,
    PerBlock,
    Product,
)
from sidewinder.checkpoint.stored import PLAIN_DTYPES, StoredTensor

CODES = ("weight", "weight_packed")
SCALES = ("weight_scale", "weight_scale_inv")
OUTER_SCALES = ("weight_scale_2", "weight_global_scale")
"""Of a whole matrix whose blocks have scales, too; the second divides those."""

PARTS = {*CODES, *SCALES, *OUTER_SCALES, "weight_zero_point", "weight_shape", "weight_g_idx"}

WHOLE = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
"""Dtypes of codes that are stored one by one."""


def scaled_matrix(parts: Parts, quantisation: Quantisation) -> StoredTensor:
    """The matrix of `parts`.

    Raises:
        ValueError: if they are incomplete, or do not fit each other or `quantisation`.
    """
    codes, scale = parts.take(*CODES), parts.take(*SCALES)
    if codes is None:
        raise parts.error(
            f"has {' and '.join(['a scale'] if scale else parts.tensors)}, and no weight"
        )
    if codes.dtype in PLAIN_DTYPES:
        raise parts.error(f"has a weight of {dtype_name(codes.dtype)} and what only codes need")
    if scale is None:
        raise parts.error(f"has a weight of {dtype_name(codes.dtype)} and no scale")
    shape, view = _codes(parts, codes, quantisation.bits)
    groups = _groups(parts, scale, shape)
    inner = per_block(parts, scale, shape, quantisation.blocks, groups)
    zero = _zero(parts, view, shape, quantisation.blocks, groups)
    dequantised = Dequantised(shape, view, _whole_scale(parts, scale, inner, shape), zero)
    if parts.tensors:
        raise parts.error(f"has a {min(parts.tensors)}, which goes with no such weight")
    return StoredTensor(parts.file, shape, torch.float32, dequantised)


def _codes(parts: Parts, codes: StoredTensor, bits: tuple[int, ...]) -> tuple[Shape, View]:
    """The matrix's shape, and a view of one number for each of its values."""
    if codes.dtype in WHOLE:
        return codes.shape, codes.view
    if not codes.shape:
        raise parts.error("has a weight that is no matrix")
    if codes.dtype == torch.uint8:
        shape = (*codes.shape[:-1], 2 * codes.shape[-1])
        return shape, PackedFloats(codes.view, shape)
    stated = parts.take("weight_shape")
    if codes.dtype != torch.int32 or stated is None:
        raise parts.error(
            f"has a weight of {dtype_name(codes.dtype)}, and no weight_shape beside it"
        )
    sizes = [int(size) for size in stated.view[()].flatten()]
    shape = (*codes.shape[:-1], sizes[-1] if sizes else 0)
    # Experts may have been counted as rows when the shape was noted.
    fitting = [each for each in bits if words_of(shape[-1], each) == codes.shape[-1]]
    if math.prod(sizes) != math.prod(shape) or len(fitting) != 1:
        raise parts.error(
            f"is packed as {list(codes.shape)}, says that it is {sizes}, and the checkpoint has "
            f"integers of {' or '.join(map(str, bits)) or 'no'} bits"
        )
    return shape, PackedIntegers(
        codes.view, shape, fitting[0], len(shape) - 1, 1 << (fitting[0] - 1)
    )


def _groups(parts: Parts, scale: StoredTensor, shape: Shape) -> View | None:
    """The group of each column, where they are in another order; -1 says that they are not."""
    stored = parts.take("weight_g_idx")
    if stored is None:
        return None
    if stored.shape != shape[-1:] or len(scale.shape) != len(shape):
        raise parts.error(f"has a weight_g_idx of shape {list(stored.shape)}")
    groups = stored.view[()]
    if bool((groups == -1).any()):
        return None
    if scale.shape[:-1] != shape[:-1] or not bool(
        ((groups >= 0) & (groups < scale.shape[-1])).all()
    ):
        raise parts.error(f"has a weight_g_idx of other groups than its scale {list(scale.shape)}")
    return stored.view


def _whole_scale(
    parts: Parts, scale: StoredTensor, inner: PerBlock, shape: Shape
) -> PerBlock | Product:
    divides = "weight_global_scale" in parts.tensors
    outer = parts.take(*OUTER_SCALES)
    if outer is None:
        if scale.dtype == torch.float8_e4m3fn:
            raise parts.error("has scales of 8 bits, and none of the whole matrix")
        return inner
    return Product(inner, per_block(parts, outer, shape, ()), divides)


def _zero(
    parts: Parts, codes: View, shape: Shape, blocks: tuple[Block, ...], groups: View | None
) -> PerBlock | None:
    """What stands for zero: a byte each, or packed along rows as the codes are along columns."""
    zero = parts.take("weight_zero_point")
    if zero is None:
        return None
    if zero.dtype == torch.int32 and isinstance(codes, PackedIntegers) and len(zero.shape) > 1:
        unpacked = (*shape[:-1], zero.shape[-1])
        if zero.shape == (*shape[:-2], words_of(shape[-2], codes.bits), zero.shape[-1]):
            rows = replace(codes, words=zero.view, shape=unpacked, dim=len(shape) - 2)
            zero = replace(zero, shape=unpacked, view=rows)
    elif zero.dtype != torch.int8:
        raise parts.error(f"has a weight_zero_point of {dtype_name(zero.dtype)}")
    return per_block(parts, zero, shape, blocks, groups)
