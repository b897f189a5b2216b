"""Weights in the order in which the processor's products read them (`csrc/linear_packed.h`).

Packing moves the weights once, at load; a call then reads memory in order, and needs no sum across
lanes. Only native kernels take packed weights: one instruction-set level all of them, two more
integers (`ops.native_linear.packed_bits`).
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from sidewinder.memory import empty
from sidewinder.quantise import LARGE_MATRICES, QuantisedWeight

PANEL = 64
"""Outputs of a panel."""

PACKED_MATRICES = (
    *LARGE_MATRICES,
    *(".x_proj.weight", ".dt_proj.weight", ".A.weight", ".B.weight"),
    "lm_head.weight",
)
"""Parameters that are packed: all that `ops.linear` alone reads."""

EMBEDDING = "embedding.weight"
"""Packed where it is also the head; a token is then looked up in the panels."""


@dataclass(frozen=True)
class PackedWeight:
    """A matrix `[o, i]` in panels of 64 outputs, padded with zeros.

    Attributes:
        data: int32 `[ceil(o / 64), units, 64]`; lane `r` of a unit has 2 neighbouring bfloat16
            weights of the panel's row `r`, 4 int8 ones, each plus 128, or 8 int4 ones, each plus 8:
            the lower halves of the lane's bytes have the first 4, the upper ones the others.
        shape: `[o, i]`.
        scales: None for bfloat16, else bfloat16 `[ceil(o / 64), ceil(i / group_size), 64]`.
        group_size: inputs that share a scale.
        bits: of a weight: 16, 8 or 4.
    """

    data: Tensor
    shape: torch.Size
    scales: Tensor | None = None
    group_size: int = 32
    bits: int = 16

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    @property
    def unit(self) -> int:
        """Inputs of a unit."""
        return 32 // self.bits

    def unpack(self) -> Tensor | QuantisedWeight:
        """The weight as it was before packing."""
        outputs, inputs = self.shape
        words = _in_rows(self.data, outputs)
        if self.scales is None:
            return words.view(torch.bfloat16)[:, :inputs].contiguous()
        raised = words.view(torch.uint8)
        if self.bits == 4:
            lanes = raised.view(outputs, -1, 1, 4)
            raised = torch.cat((lanes & 15, lanes >> 4), dim=2).view(outputs, -1)
        integers = (raised[:, :inputs] - _offset(self.bits)).view(torch.int8)
        scales = _in_rows(self.scales, outputs)
        return QuantisedWeight.of(integers, scales, self.group_size, self.bits)

    def lookup(self, rows: Tensor) -> Tensor:
        """Some rows of a bfloat16 matrix, `[n]` indices to `[n, i]`."""
        assert self.scales is None, "an embedding is not rounded"
        found = self.data[rows // PANEL, :, rows % PANEL]
        return found.view(torch.bfloat16)[:, : self.shape[1]]

    def rows(self, which: slice) -> "PackedWeight":
        """The outputs `which`: a view where they begin with a panel, else packed again."""
        start, stop, _ = which.indices(self.shape[0])
        if start % PANEL != 0:
            return pack(self.unpack()[start:stop])
        panels = slice(start // PANEL, -(-stop // PANEL))
        scales = None if self.scales is None else self.scales[panels]
        shape = torch.Size((stop - start, self.shape[1]))
        return PackedWeight(self.data[panels], shape, scales, self.group_size, self.bits)

    def columns(self, which: slice) -> "PackedWeight":
        """The inputs `which` of a bfloat16 matrix: a view of whole units, else packed again."""
        assert self.scales is None, "groups are not cut"
        start, stop, _ = which.indices(self.shape[1])
        if start % 2 != 0 or (stop % 2 != 0 and stop != self.shape[1]):
            unpacked = self.unpack()
            assert isinstance(unpacked, Tensor)
            return pack(unpacked[:, start:stop])
        data = self.data[:, start // 2 : -(-stop // 2)]
        return PackedWeight(data, torch.Size((self.shape[0], stop - start)))


def pack(weight: Tensor | QuantisedWeight) -> PackedWeight:
    """Pack a matrix.

    Args:
        weight: `[o, i]`, bfloat16, int8 or int4, on the CPU.
    """
    if isinstance(weight, QuantisedWeight):
        raised = weight.integers().view(torch.uint8) + _offset(weight.bits)
        if weight.bits == 4:
            whole = torch.nn.functional.pad(raised, (0, -weight.inputs % 8))
            lanes = whole.view(len(whole), -1, 2, 4)
            raised = (lanes[:, :, 0] | lanes[:, :, 1] << 4).view(len(raised), -1)
        data, scales = _in_panels(_words(raised, 4)), _in_panels(weight.scales)
        return PackedWeight(data, weight.shape, scales, weight.group_size, weight.bits)
    assert weight.dtype == torch.bfloat16, weight.dtype
    return PackedWeight(_in_panels(_words(weight, 2)), weight.shape)


def _offset(bits: int) -> int:
    """What is added to integers, so that bytes of them have no sign."""
    return 1 << (bits - 1)


def _words(matrix: Tensor, each: int) -> Tensor:
    """Rows as int32 words of `each` neighbours, the last one padded with zeros."""
    padding = -matrix.shape[1] % each
    if padding or not matrix.is_contiguous() or matrix.storage_offset() % each:
        matrix = torch.nn.functional.pad(matrix, (0, padding)).clone()
    return matrix.contiguous().view(torch.int32)


def _in_panels(rows: Tensor) -> Tensor:
    """`[o, n]` to `[panels, n, PANEL]`."""
    outputs, n = rows.shape
    panels = -(-outputs // PANEL)
    packed = empty((panels, n, PANEL), rows.dtype)
    whole = outputs // PANEL
    packed[:whole] = rows[: whole * PANEL].view(whole, PANEL, n).transpose(1, 2)
    if whole < panels:
        packed[whole] = 0
        packed[whole, :, : outputs - whole * PANEL] = rows[whole * PANEL :].T
    return packed


def _in_rows(panels: Tensor, outputs: int) -> Tensor:
    """`_in_panels` undone."""
    rows = panels.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return rows.view(-1, panels.shape[1])[:outputs]


def pack_weights(
    weights: dict[str, Tensor | QuantisedWeight], tie_embeddings: bool, bits: Collection[int]
) -> dict[str, Tensor | QuantisedWeight | PackedWeight]:
    """A rank's weights with the bfloat16, int8 and int4 matrices of `ops.linear` packed.

    The others stay as they are, and float32 matrices too: they have no products of their own.

    Args:
        weights: by our names (docs/architecture.md); taken out one by one, so that each is freed
            before the next is packed.
        tie_embeddings: whether the embedding is also the head.
        bits: of weights that are packed (`ops.native_linear.packed_bits`).
    """
    packed: dict[str, Tensor | QuantisedWeight | PackedWeight] = {}
    for name in list(weights):
        weight = weights.pop(name)
        is_matrix = name.endswith(PACKED_MATRICES) or (tie_embeddings and name == EMBEDDING)
        packed[name] = pack(weight) if is_matrix and _bits_of(weight) in bits else weight
    return packed


def _bits_of(weight: Tensor | QuantisedWeight) -> int:
    """32 of what cannot be packed."""
    if isinstance(weight, QuantisedWeight):
        return weight.bits
    return 16 if weight.dtype == torch.bfloat16 else 32
