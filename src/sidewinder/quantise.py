"""Weights in 8 or 4 bits with one scale per group of inputs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sidewinder.extension import module as _native

GROUP_SIZES = (32, 64, 128)

BITS = {"int8": 8, "int4": 4}
"""Of the large matrices, by `weight_dtype`."""

GROUP_SIZE = {8: 64, 4: 32}
"""Of weights in so many bits: measured, docs/kernels.md."""

LARGE_MATRICES = (
    ".in_proj.weight",
    ".out_proj.weight",
    ".linear.weight",
    ".q.weight",
    ".k.weight",
    ".v.weight",
    ".o.weight",
    ".gate.weight",
    ".up.weight",
    ".down.weight",
    ".to_latent.weight",
    ".from_latent.weight",
)
"""Parameters that are rounded. What steers the recurrence (x_proj, dt_proj) is small, and stays, as
adapters do."""

HEAD, EMBEDDING = "lm_head.weight", "embedding.weight"

HEAD_BITS = 8
"""The head is rounded, too, but to int8 beside int4: it is one matrix of many, and costs as much
accuracy as all of a kind (docs/kernels.md)."""

BLOCK = 32
"""Inputs of a block of int4."""

CHUNK, DEVICE_CHUNK = 1 << 14, 1 << 22
"""Weights that torch rounds to int4 at once. On CPUs so few that it wakes no threads and they stay
in the caches; on GPUs enough to be worth a hundred launches, 16 MiB a copy in float32."""

DIVISORS = (6, 6.75, 7.5, 8.25, 9)
"""Where the largest weight of a group in int4 may come to lie; -8 is the last integer."""

STEPS = 1 << 13
"""Weights of a group are divided into so many steps to choose its scale."""

LEAST = 1e-30
"""Groups of int4 without larger weights are zeros: scales far above the smallest float32."""

BLOCK_ELEMENTS = 1 << 24
"""Weights that are rounded to int8 at once: their copies in float32 take 64 MiB each."""

SLICE_BYTES = 128 << 20
"""On GPUs: most memory that weights take which were widened for a product of many rows."""

MANY_ROWS = 512
"""On GPUs: from so many rows on weights are widened before a product, which is then torch's."""


@dataclass(frozen=True)
class QuantisedWeight:
    """A matrix `[o, i]` of integers: `weight[r, c] ≈ integers[r, c] * scales[r, c // group_size]`.

    Attributes:
        values: of 8 bits int8 `[o, i]`, within ±127, row stride ≥ i. Of 4 bits uint8
            `[o, 16 * ceil(i / 32)]`, in a byte two of -8 to 7, each plus 8: byte `j` of 16 has
            input `j` of their 32 in its lower half and input `16 + j` in its upper one.
        scales: bfloat16 `[o, ceil(i / group_size)]`; those of int4 may be negative.
        group_size: inputs that share a scale; one of `GROUP_SIZES`.
        bits: 8 or 4.
        inputs: `i`.
    """

    values: Tensor
    scales: Tensor
    group_size: int
    bits: int
    inputs: int

    @classmethod
    def of(cls, integers: Tensor, scales: Tensor, group_size: int, bits: int) -> "QuantisedWeight":
        """From integers, int8 `[o, i]`."""
        return cls(_stored(integers, bits), scales, group_size, bits, integers.shape[1])

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.values.shape[0], self.inputs))

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def __getitem__(self, rows: slice) -> "QuantisedWeight":
        values, scales = self.values[rows], self.scales[rows]
        return QuantisedWeight(values, scales, self.group_size, self.bits, self.inputs)

    def integers(self) -> Tensor:
        """The integers, int8 `[o, i]`."""
        if self.bits == 8:
            return self.values
        halves = self.values.view(len(self.values), -1, 1, BLOCK // 2)
        both = torch.cat((halves & 15, halves >> 4), dim=2).view(torch.int8) - 8
        return both.view(len(self.values), -1)[:, : self.inputs]

    def dequantise(self) -> Tensor:
        """The weight in float32, `[o, i]`, each product rounded once."""
        scales = self.scales.float().repeat_interleave(self.group_size, dim=1)
        return self.integers().float() * scales[:, : self.inputs]


def rounded_bits(name: str, weight_dtype: str) -> int | None:
    """Bits of parameter `name`'s integers, None where it stays as it is.

    Args:
        name: one of ours (docs/architecture.md).
        weight_dtype: "auto", or one of `BITS`.
    """
    if weight_dtype == "auto":
        return None
    if name == HEAD:
        return HEAD_BITS
    return BITS[weight_dtype] if name.endswith(LARGE_MATRICES) else None


def rounded_bytes(shape: Sequence[int], bits: int) -> int:
    """Bytes of a matrix `[o, i]` that `quantise` rounded to `bits`, its scales included."""
    outputs, inputs = shape
    values = inputs if bits == 8 else -(-inputs // BLOCK) * BLOCK // 2
    return outputs * (values + 2 * -(-inputs // GROUP_SIZE[bits]))


def empty_weight(
    shape: Sequence[int], device: torch.device | str, bits: int, group_size: int | None = None
) -> QuantisedWeight:
    """A matrix `[o, i]` in so many bits that was not filled; `group_size` None: `GROUP_SIZE`'s."""
    outputs, inputs = shape
    group_size = GROUP_SIZE[bits] if group_size is None else group_size
    width, dtype = inputs, torch.int8
    if bits == 4:
        width, dtype = -(-inputs // BLOCK) * BLOCK // 2, torch.uint8
    values = torch.empty(outputs, width, dtype=dtype, device=device)
    scales = torch.empty(outputs, -(-inputs // group_size), dtype=torch.bfloat16, device=device)
    return QuantisedWeight(values, scales, group_size, bits, inputs)


def quantise(weight: Tensor, group_size: int | None = None, bits: int = 8) -> QuantisedWeight:
    """Round `weight` symmetrically: to int8 with the largest magnitude of each group at ±127, or to
    int4 with the scale of each group that leaves the least squared error of those tried.

    A group of zeros gets scale 0. Groups run along the inputs and do not cross rows, and each is
    rounded by itself, so slicing a weight along its outputs, or along its inputs at multiples of
    `group_size`, before or after gives the same.

    Args:
        weight: `[o, i]`, finite.
        group_size: one of `GROUP_SIZES`, None for `GROUP_SIZE`'s; the last group of a row may be
            shorter.
        bits: 8 or 4.

    Raises:
        ValueError: for another group size or number of bits, another number of dimensions, or
            values that are not finite.
    """
    if bits not in GROUP_SIZE:
        raise ValueError(f"bits={bits} is not one of {', '.join(map(str, BITS.values()))}")
    group_size = GROUP_SIZE[bits] if group_size is None else group_size
    if group_size not in GROUP_SIZES:
        choices = ", ".join(map(str, GROUP_SIZES))
        raise ValueError(f"group_size={group_size} is not one of {choices}")
    if weight.dim() != 2:
        raise ValueError(f"weights in integers are matrices; this has {weight.dim()} dimensions")
    natively = bits == 4 and _rounds_natively(weight)
    found = (_round_natively if natively else _round)(weight, group_size, bits)
    if not found.scales.isfinite().all():
        raise ValueError("a weight that is not finite cannot be quantised")
    return found


def _round(weight: Tensor, group_size: int, bits: int) -> QuantisedWeight:
    """By torch, some rows at a time: int8 takes a few passes over them, int4 some fifty."""
    outputs, inputs = weight.shape
    found = empty_weight(weight.shape, weight.device, bits, group_size)
    rounded, at_once = _to_int8, BLOCK_ELEMENTS
    if bits == 4:
        rounded, at_once = _to_int4, CHUNK if weight.is_cpu else DEVICE_CHUNK
    for rows in _chunks(outputs, at_once // max(1, inputs)):
        some, found.scales[rows] = rounded(_groups(weight[rows], group_size))
        found.values[rows] = _stored(some.view(len(some), -1)[:, :inputs], bits)
    return found


def _round_natively(weight: Tensor, group_size: int, bits: int) -> QuantisedWeight:
    outputs, inputs = weight.shape
    n_groups = -(-inputs // group_size)
    integers = torch.empty(outputs, n_groups * group_size, dtype=torch.int8)
    scales = torch.empty(outputs, n_groups, dtype=torch.bfloat16)
    _native.round_int4(weight, group_size, integers, scales)
    return QuantisedWeight.of(integers[:, :inputs], scales, group_size, bits)


def _stored(integers: Tensor, bits: int) -> Tensor:
    """Integers, int8 `[o, i]`, as `QuantisedWeight.values` has them."""
    if bits == 8:
        return integers.contiguous()
    outputs, inputs = integers.shape
    blocks = torch.nn.functional.pad(integers + 8, (0, -inputs % BLOCK), value=8)
    halves = blocks.view(torch.uint8).view(outputs, -1, 2, BLOCK // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).view(outputs, -1)


def _rounds_natively(weight: Tensor) -> bool:
    """Whether csrc/round_int4.h does what `_to_int4` does: to the bit, and much sooner."""
    is_real = weight.dtype in (torch.float32, torch.bfloat16)
    return _native is not None and weight.is_cpu and is_real and weight.stride(1) == 1


def _chunks(outputs: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(start, start + step) for start in range(0, outputs, step))


def _groups(rows: Tensor, group_size: int) -> Tensor:
    """`[rows, inputs]` in float32 as `[rows, groups, group_size]`, padded with zeros."""
    n_groups = -(-rows.shape[1] // group_size)
    padded = torch.zeros(len(rows), n_groups * group_size, device=rows.device)
    padded[:, : rows.shape[1]] = rows
    return padded.view(len(rows), n_groups, group_size)


def _to_int8(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Integers and scales. The largest magnitude is still ±127: rounding the scale moves it by a
    quarter of a step at most."""
    largest = groups.abs().amax(-1)
    # By a tensor: on GPUs torch multiplies by the reciprocal of a number, and some scales differ.
    scales = (largest / largest.new_full((), 127)).bfloat16()
    divisors = torch.where(scales > 0, scales.float(), 1)[..., None]
    return (groups / divisors).round_().clamp_(-127, 127).to(torch.int8), scales


def _to_int4(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Integers and scales: the largest weight goes near -8, where there is one integer more than at
    7; of the rest, the least squares.

    The same bits on GPUs: of weights that are equally large argmax takes the first, sums are exact,
    and numbers that are divided by are powers of two (see `_to_int8`).
    """
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    unit = torch.where(largest.abs() > LEAST, -1 / largest, 0 * largest)
    # The largest is at -1. Sums of multiples of 1 / STEPS are exact, in any order.
    relative = (groups * unit * STEPS).round_() / STEPS
    best, factor = torch.full_like(unit, -1.0), torch.zeros_like(unit)
    for divisor in DIVISORS:
        integers = (relative * divisor).round_().clamp_(-8, 7)
        fit = (integers * relative).sum(-1, keepdim=True)
        squares = integers.square_().sum(-1, keepdim=True).clamp_(min=1)
        explained = fit * fit / squares  # of the sum of squares, by the best multiple of these
        better = explained > best
        best = torch.where(better, explained, best)
        factor = torch.where(better, fit / squares, factor)
    scales = (factor * -largest + 0).bfloat16()  # no negative zeros
    inverse = torch.where(scales != 0, 1 / scales.float(), 0)
    return (groups * inverse).round_().clamp_(-8, 7).to(torch.int8), scales[..., 0]


def quantise_weights(
    weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    tie_embeddings: bool,
    weight_dtype: str = "int8",
) -> dict[str, Tensor | QuantisedWeight]:
    """A rank's weights with the large matrices and the head rounded, the others as they are.

    Looking up a token reads one row of the embedding and logits read all of it, so where the two
    are tied the table stays and an int8 `lm_head.weight` is added: fewer bytes per step, not less
    memory for the table.

    Args:
        weights: by our names (docs/architecture.md). Of pairs that an iterator makes, each is
            rounded, and its memory free, before the next but one is made.
        tie_embeddings: whether `lm_head` is the embedding.
        weight_dtype: of the large matrices, one of `BITS`.
    """
    quantised: dict[str, Tensor | QuantisedWeight] = {}
    for name, weight in weights.items() if isinstance(weights, Mapping) else weights:
        bits = rounded_bits(name, weight_dtype)
        quantised[name] = weight if bits is None else quantise(weight, bits=bits)
        if tie_embeddings and name == EMBEDDING:
            quantised[HEAD] = quantise(weight, bits=HEAD_BITS)
    return quantised
