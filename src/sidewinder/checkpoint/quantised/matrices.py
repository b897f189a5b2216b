"""A quantised checkpoint's tensors as the matrices that they stand for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from sidewinder.checkpoint.layouts import Shape, View
from sidewinder.checkpoint.quantised.config import Block, Quantisation
from sidewinder.checkpoint.quantised.views import (
    WORD_BITS,
    Dequantised,
    PackedFloats,
    PackedIntegers,
    PerBlock,
    Product,
    Reshaped,
)
from sidewinder.checkpoint.stored import PLAIN_DTYPES, StoredTensor

CODES = ("weight", "weight_packed")
SCALES = ("weight_scale", "weight_scale_inv")
OUTER_SCALES = ("weight_scale_2", "weight_global_scale")
"""Of a whole matrix whose blocks have scales, too; the second divides those."""

PARTS = {*CODES, *SCALES, *OUTER_SCALES, "weight_zero_point", "weight_shape", "weight_g_idx"}

OF_ACTIVATIONS = {
    "input_scale", "input_scale_ub", "input_global_scale", "input_zero_point", "output_scale",
    "output_zero_point", "q_scale", "k_scale", "v_scale", "k_zero_point", "v_zero_point",
}  # fmt: skip
"""Of what is not rounded here: read by nobody."""

WHOLE = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
"""Dtypes of codes that are stored one by one."""


def dequantised(
    tensors: Mapping[str, StoredTensor], quantisation: Quantisation
) -> dict[str, StoredTensor]:
    """`tensors` by the names of a checkpoint that is not quantised: in place of a matrix's codes
    and scales there is a view that widens what is read of it, to float32.

    Raises:
        ValueError: if a matrix's parts are incomplete, or do not fit each other or `quantisation`.
    """
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = tensor
    found: dict[str, StoredTensor] = {}
    for module, tensors_of in modules.items():
        rest = dict(tensors_of)
        parts = {name: rest.pop(name) for name in sorted(PARTS & rest.keys())}
        if set(parts) == {"weight"} and parts["weight"].dtype in PLAIN_DTYPES:
            rest |= parts
        elif parts:
            found[f"{module}.weight"] = _matrix(_Parts(module, parts), quantisation)
        found |= {f"{module}.{name}": tensor for name, tensor in rest.items()}
    return _without_activations(found)


def _without_activations(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """All but the scales of activations, keys and values of modules that there are."""
    modules: set[str] = set()
    scales = {name for name in tensors if name.rpartition(".")[2] in OF_ACTIVATIONS}
    for name in tensors.keys() - scales:
        parent = name.rpartition(".")[0]
        while parent and parent not in modules:
            modules.add(parent)
            parent = parent.rpartition(".")[0]
    unused = {name for name in scales if name.rpartition(".")[0] in modules}
    return {name: tensor for name, tensor in tensors.items() if name not in unused}


@dataclass
class _Parts:
    """What is stored of one matrix, of which each is taken once."""

    module: str
    tensors: dict[str, StoredTensor]

    def __post_init__(self) -> None:
        self.file = next(iter(self.tensors.values())).file

    def take(self, *names: str) -> StoredTensor | None:
        """The one that there is of `names`."""
        found = [name for name in names if name in self.tensors]
        if len(found) > 1:
            raise self.error(f"has both {found[0]} and {found[1]}")
        return self.tensors.pop(found[0]) if found else None

    def error(self, what: str) -> ValueError:
        """That the matrix cannot be read; it `what`."""
        return ValueError(
            f"{self.file}: {self.module} {what}; the file is incomplete, or it is quantised in a "
            "way that is not supported (docs/checkpoints.md lists those that are)"
        )


def _matrix(parts: _Parts, quantisation: Quantisation) -> StoredTensor:
    codes, scale = parts.take(*CODES), parts.take(*SCALES)
    if codes is None:
        raise parts.error(
            f"has {' and '.join(['a scale'] if scale else parts.tensors)}, and no weight"
        )
    if codes.dtype in PLAIN_DTYPES:
        raise parts.error(f"has a weight of {_name(codes.dtype)} and what only codes need")
    if scale is None:
        raise parts.error(f"has a weight of {_name(codes.dtype)} and no scale")
    shape, view = _codes(parts, codes, quantisation.bits)
    groups = _groups(parts, scale, shape)
    inner = _per_block(parts, scale, shape, quantisation.blocks, groups)
    zero = _zero(parts, view, shape, quantisation.blocks, groups)
    dequantised = Dequantised(shape, view, _whole_scale(parts, scale, inner, shape), zero)
    if parts.tensors:
        raise parts.error(f"has a {min(parts.tensors)}, which goes with no such weight")
    return StoredTensor(parts.file, shape, torch.float32, dequantised)


def _codes(parts: _Parts, codes: StoredTensor, bits: tuple[int, ...]) -> tuple[Shape, View]:
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
        raise parts.error(f"has a weight of {_name(codes.dtype)}, and no weight_shape beside it")
    sizes = [int(size) for size in stated.view[()].flatten()]
    shape = (*codes.shape[:-1], sizes[-1] if sizes else 0)
    # Experts may have been counted as rows when the shape was noted.
    fitting = [each for each in bits if _words(shape[-1], each) == codes.shape[-1]]
    if math.prod(sizes) != math.prod(shape) or len(fitting) != 1:
        raise parts.error(
            f"is packed as {list(codes.shape)}, says that it is {sizes}, and the checkpoint has "
            f"integers of {' or '.join(map(str, bits)) or 'no'} bits"
        )
    return shape, PackedIntegers(
        codes.view, shape, fitting[0], len(shape) - 1, 1 << (fitting[0] - 1)
    )


def _words(count: int, bits: int) -> int:
    return -(-count * bits // WORD_BITS)


def _groups(parts: _Parts, scale: StoredTensor, shape: Shape) -> View | None:
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
    parts: _Parts, scale: StoredTensor, inner: PerBlock, shape: Shape
) -> PerBlock | Product:
    divides = "weight_global_scale" in parts.tensors
    outer = parts.take(*OUTER_SCALES)
    if outer is None:
        if scale.dtype == torch.float8_e4m3fn:
            raise parts.error("has scales of 8 bits, and none of the whole matrix")
        return inner
    return Product(inner, _per_block(parts, outer, shape, ()), divides)


def _zero(
    parts: _Parts, codes: View, shape: Shape, blocks: tuple[Block, ...], groups: View | None
) -> PerBlock | None:
    """What stands for zero: a byte each, or packed along rows as the codes are along columns."""
    zero = parts.take("weight_zero_point")
    if zero is None:
        return None
    if zero.dtype == torch.int32 and isinstance(codes, PackedIntegers) and len(zero.shape) > 1:
        unpacked = (*shape[:-1], zero.shape[-1])
        if zero.shape == (*shape[:-2], _words(shape[-2], codes.bits), zero.shape[-1]):
            rows = replace(codes, words=zero.view, shape=unpacked, dim=len(shape) - 2)
            zero = replace(zero, shape=unpacked, view=rows)
    elif zero.dtype != torch.int8:
        raise parts.error(f"has a weight_zero_point of {_name(zero.dtype)}")
    return _per_block(parts, zero, shape, blocks, groups)


def _per_block(
    parts: _Parts,
    values: StoredTensor,
    shape: Shape,
    blocks: tuple[Block, ...],
    groups: View | None = None,
) -> PerBlock:
    """`values` as one for each block of a matrix of `shape`."""
    counts = _counts(values.shape, shape)
    if groups is not None and counts is not None:
        return PerBlock(values.view, (1,) * len(shape), groups)
    fitting = {_sizes(counts, shape, block) for block in (None, *blocks)} - {None}
    if counts is None or len(fitting) != 1:
        raise parts.error(
            f"has scales or zeros of shape {list(values.shape)}, which fit no matrix of "
            f"{list(shape)} in blocks of {' or '.join(map(str, blocks)) or 'rows'}"
        )
    view = values.view if counts == values.shape else Reshaped(values.view, counts)
    (sizes,) = fitting
    assert sizes is not None
    return PerBlock(view, sizes)


def _counts(stored: Shape, shape: Shape) -> Shape | None:
    """How many blocks there are along each dimension, however the file writes that."""
    if math.prod(stored) == 1:
        return (1,) * len(shape)
    if len(stored) == 2 * len(shape) and set(stored[1::2]) == {1}:
        stored = stored[::2]
    if len(stored) > len(shape):
        return None
    return (*stored, *(1,) * (len(shape) - len(stored)))


def _sizes(counts: Shape | None, shape: Shape, block: Block | None) -> tuple[int, ...] | None:
    """The sizes of blocks that `counts` of them fill `shape` with; None if they do not."""
    if counts is None:
        return None
    candidates = (*(1,) * (len(shape) - 2), *(block or (1, 1)))
    sizes = []
    for count, size, candidate in zip(counts, shape, candidates[-len(shape) :], strict=True):
        if count == 1:
            sizes.append(max(size, 1))
        elif count == size:
            sizes.append(1)
        elif count == -(-size // candidate):
            sizes.append(candidate)
        else:
            return None
    return tuple(sizes)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
