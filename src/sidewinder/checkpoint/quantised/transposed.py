"""Matrices as GPTQ and AWQ store them: packed integers and their scales, all transposed.

| part | GPTQ | AWQ |
|---|---|---|
| `qweight`, int32 | `[columns / packed, rows]` | `[columns, rows / packed]` |
| `qzeros`, int32 | `[groups, rows / packed]` | the same |
| `scales` | `[groups, rows]` | the same |
| `g_idx`, int32 | `[columns]`: the group of each | - |
"""

import torch

from sidewinder.checkpoint.layouts import Shape, View
from sidewinder.checkpoint.quantised.config import PACKED_BITS, Block, Quantisation
from sidewinder.checkpoint.quantised.parts import Parts, per_block, words_of
from sidewinder.checkpoint.quantised.views import (
    WORD_BITS,
    Dequantised,
    PackedIntegers,
    TransposedView,
)
from sidewinder.checkpoint.stored import StoredTensor

PARTS = {"weight", "qweight", "qzeros", "scales", "g_idx"}

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word AWQ puts each of eight rows."""


def gptq_matrix(parts: Parts, quantisation: Quantisation) -> StoredTensor:
    """The matrix of `parts`.

    Raises:
        ValueError: if they are incomplete, or do not fit each other or `quantisation`.
    """
    words = _turned(parts, "qweight", torch.int32)
    order = parts.take("g_idx")
    bits = _gptq_bits(parts, words, order, quantisation.bits[0])
    n_columns = order.shape[0] if order else words.shape[1] * WORD_BITS // bits
    shape = (words.shape[0], n_columns)
    codes = PackedIntegers(words.view, shape, bits, 1, 0)
    groups = _groups(parts, order, quantisation.blocks)
    return _matrix(parts, codes, quantisation, groups)


def awq_matrix(parts: Parts, quantisation: Quantisation) -> StoredTensor:
    """As `gptq_matrix`."""
    words = _turned(parts, "qweight", torch.int32)
    (bits,) = quantisation.bits
    shape = (words.shape[0] * WORD_BITS // bits, words.shape[1])
    codes = PackedIntegers(words.view, shape, bits, 0, 0, places=AWQ_PLACES)
    return _matrix(parts, codes, quantisation, None)


def _turned(parts: Parts, name: str, *dtypes: torch.dtype) -> StoredTensor:
    """One part, transposed back."""
    stored = parts.need(name)
    if len(stored.shape) != 2 or stored.dtype not in dtypes:
        raise parts.error(f"has a {name} of {stored.dtype} and shape {list(stored.shape)}")
    return StoredTensor(stored.file, stored.shape[::-1], stored.dtype, TransposedView(stored.view))


def _gptq_bits(parts: Parts, words: StoredTensor, order: StoredTensor | None, bits: int) -> int:
    """Of each code: the configuration's, but modules may have others."""
    if order is None:
        return bits
    if len(order.shape) == 1:
        for each in (bits, *PACKED_BITS):
            if words_of(order.shape[0], each) == words.shape[1]:
                return each
    raise parts.error(f"has a g_idx of shape {list(order.shape)} and words {list(words.shape)}")


def _groups(
    parts: Parts, order: StoredTensor | None, blocks: tuple[Block, ...]
) -> StoredTensor | None:
    """The group of each column; None where they are in the order of the configuration's groups."""
    if order is None:
        return None
    groups = order.view[()].long()
    in_order = (torch.arange(len(groups)) // size for _, size in blocks)
    if not bool(groups.any()) or any(torch.equal(groups, each) for each in in_order):
        return None
    if bool((groups < 0).any()):
        raise parts.error("has a g_idx below zero")
    return order


def _matrix(
    parts: Parts,
    codes: PackedIntegers,
    quantisation: Quantisation,
    order: StoredTensor | None,
) -> StoredTensor:
    shape, bits, blocks = codes.shape, codes.bits, quantisation.blocks
    scales = _turned(parts, "scales", torch.float16, torch.bfloat16, torch.float32)
    zeros = _turned(parts, "qzeros", torch.int32)
    if parts.tensors:
        raise parts.error(f"has a {min(parts.tensors)} beside its qweight")
    unpacked = (shape[0], scales.shape[1])
    if zeros.shape != (words_of(shape[0], bits), scales.shape[1]):
        raise parts.error(
            f"has qzeros of shape {list(zeros.shape[::-1])} beside scales of "
            f"{list(scales.shape[::-1])}, in words of {bits} bits"
        )
    groups = _checked(parts, order, scales.shape)
    less = 1 if quantisation.zeros_less_one else 0
    packed = PackedIntegers(zeros.view, unpacked, bits, 0, 0, less, codes.places)
    zero = StoredTensor(parts.file, unpacked, torch.int32, packed)
    dequantised = Dequantised(
        shape,
        codes,
        per_block(parts, scales, shape, blocks, groups),
        per_block(parts, zero, shape, blocks, groups),
    )
    return StoredTensor(parts.file, shape, torch.float32, dequantised)


def _checked(parts: Parts, order: StoredTensor | None, scales: Shape) -> View | None:
    if order is None:
        return None
    if int(order.view[()].max()) >= scales[1]:
        raise parts.error(f"has a g_idx of other groups than its {scales[1]} scales of a row")
    return order.view
