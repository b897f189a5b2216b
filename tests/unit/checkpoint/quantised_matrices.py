"""Matrices in few bits, and what they stand for, the plain way: whole, by loops over columns."""

import json

import torch
from torch import Tensor

GROUP = 10
"""Columns: neither words of packed integers nor any rank's columns end where groups do."""

TILE = (20, 14)

Encoded = tuple[dict[str, Tensor], Tensor]
"""The parts of a matrix by the ends of their names, and what they stand for."""


def spread(values: Tensor, shape: torch.Size, tile: tuple[int, int]) -> Tensor:
    """One value for each tile, repeated over it."""
    rows, columns = (
        torch.arange(size) // side for size, side in zip(shape[-2:], tile, strict=True)
    )
    return values.float()[..., rows, :][..., columns]


def largest(weight: Tensor, tile: tuple[int, int]) -> Tensor:
    """The largest magnitude in each tile of every matrix."""
    rows, columns = (-(-size // side) for size, side in zip(weight.shape[-2:], tile, strict=True))
    found = torch.empty(*weight.shape[:-2], rows, columns)
    for row in range(rows):
        for column in range(columns):
            part = weight[
                ..., row * tile[0] : (row + 1) * tile[0], column * tile[1] : (column + 1) * tile[1]
            ]
            found[..., row, column] = part.abs().amax((-2, -1))
    return found


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers from 0 on along the last dimension into 32-bit words, the first lowest."""
    each = 32 // bits
    words = torch.zeros(*codes.shape[:-1], -(-codes.shape[-1] // each), dtype=torch.int64)
    for column in range(codes.shape[-1]):
        words[..., column // each] |= codes[..., column].long() << bits * (column % each)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def fp8(weight: Tensor, tile: tuple[int, int] | None, name: str = "weight_scale") -> Encoded:
    """8-bit floats with a scale per tile; None: one number for all."""
    scale = (weight.abs().amax() if tile is None else largest(weight, tile)) / 448
    if tile is not None and name == "weight_scale":
        scale = scale.bfloat16()
    full = scale if tile is None else spread(scale, weight.shape, tile)
    codes = (weight / full).to(torch.float8_e4m3fn)
    return {"weight": codes, name: scale}, codes.float() * full


def integers(weight: Tensor, tile: tuple[int, int], bits: int, symmetric: bool) -> Encoded:
    """Codes from `-2**(bits - 1)` on, scales, zeros (None if all are 0)."""
    half = 1 << (bits - 1)
    scale = (largest(weight, tile) / (half - 1)).bfloat16()
    zero = torch.zeros_like(scale)
    if not symmetric:
        zero = torch.arange(scale.numel()).reshape(scale.shape) % (half - 1) - half // 2
    full, shift = (spread(part, weight.shape, tile) for part in (scale, zero))
    codes = ((weight / full).round() + shift).clamp(-half, half - 1)
    parts = {"codes": codes, "weight_scale": scale}
    if not symmetric:
        parts["weight_zero_point"] = zero
    return parts, (codes - shift) * full


def int8(weight: Tensor, tile: tuple[int, int], symmetric: bool = True) -> Encoded:
    parts, stands_for = integers(weight, tile, 8, symmetric)
    parts["weight"] = parts.pop("codes").to(torch.int8)
    if "weight_zero_point" in parts:
        parts["weight_zero_point"] = parts["weight_zero_point"].to(torch.int8)
    return parts, stands_for


def packed(
    weight: Tensor, bits: int, group: int, symmetric: bool = True, flat_shape: bool = False
) -> Encoded:
    """compressed-tensors' way. `flat_shape`: experts' rows are counted together in the shape."""
    parts, stands_for = integers(weight, (1, group), bits, symmetric)
    half = 1 << (bits - 1)
    parts["weight_packed"] = pack(parts.pop("codes") + half, bits)
    columns = weight.shape[-1]
    shape = [weight.numel() // columns, columns] if flat_shape else weight.shape
    parts["weight_shape"] = torch.tensor(shape)
    if "weight_zero_point" in parts:
        zeros = parts["weight_zero_point"] + half
        parts["weight_zero_point"] = pack(zeros.mT, bits).mT.contiguous()
    return parts, stands_for


def packed_in_order(weight: Tensor) -> Encoded:
    """As `packed`, with columns that are no neighbours in a group together."""
    count = -(-weight.shape[-1] // GROUP)
    groups = torch.arange(weight.shape[-1], dtype=torch.int32).flip(0) % count
    order = groups.argsort(stable=True)
    scale = torch.stack(
        [weight[..., groups == group].abs().amax(-1) / 7 for group in range(count)], dim=-1
    )
    full = scale[..., groups.long()]
    codes = (weight / full).round()
    parts = {"weight_packed": pack(codes + 8, 4), "weight_shape": torch.tensor(weight.shape)}
    assert count == 1 or not torch.equal(order, order.sort().values)
    return parts | {"weight_scale": scale, "weight_g_idx": groups}, codes * full


MAGNITUDES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def four_bit_floats(values: Tensor) -> Tensor:
    """The codes of the nearest."""
    nearest = (values.abs().unsqueeze(-1) - MAGNITUDES).abs().argmin(-1)
    return nearest + 8 * (values < 0)


def fp4(weight: Tensor, names: tuple[str, str], mx: bool = False) -> Encoded:
    """4-bit floats. `names`: of the codes and of the outer scale; `mx`: scales are exponents."""
    if mx:
        exponents = (largest(weight, (1, GROUP)) / 6).log2().ceil().clamp(-127, 127)
        parts = {"weight_scale": (exponents + 127).to(torch.uint8)}
        scale = spread(torch.exp2(exponents), weight.shape, (1, GROUP))
    else:
        experts = weight.shape[:-2]
        outer = weight.abs().amax((-2, -1)) / (6 * 448)
        outer = outer.reshape(*experts, 1, 1) if experts else outer.reshape(1)
        inner = (largest(weight, (1, GROUP)) / 6 / outer).to(torch.float8_e4m3fn)
        parts = {"weight_scale": inner, names[1]: outer}
        if names[1] == "weight_global_scale":
            parts[names[1]] = 1 / outer
            blocks = inner.float() / parts[names[1]]
        else:
            blocks = inner.float() * outer
        scale = spread(blocks, weight.shape, (1, GROUP))
    codes = four_bit_floats(weight / scale)
    parts[names[0]] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
    stands_for = torch.where(codes > 7, -1.0, 1.0) * MAGNITUDES[codes % 8] * scale
    return parts, stands_for


def mxfp8(weight: Tensor) -> Encoded:
    exponents = (largest(weight, (1, GROUP)) / 448).log2().ceil()
    scale = spread(torch.exp2(exponents), weight.shape, (1, GROUP))
    codes = (weight / scale).to(torch.float8_e4m3fn)
    parts = {"weight": codes, "weight_scale": (exponents + 127).to(torch.uint8)}
    return parts, codes.float() * scale


def gptq(
    weight: Tensor, bits: int, less: int, in_order: bool = True, group: int = GROUP
) -> Encoded:
    """Of GPTQ, all transposed. `less`: what packed zeros are stored less than they are; of 0 that
    is the largest code."""
    count = -(-weight.shape[-1] // group)
    groups = torch.arange(weight.shape[-1]) // group
    if not in_order:
        groups = groups.flip(0)[torch.randperm(len(groups), generator=torch.manual_seed(0))]
    half = 1 << (bits - 1)
    scale = torch.stack(
        [weight[:, groups == each].abs().amax(-1) / (half - 1) for each in range(count)], dim=-1
    ).half()
    zero = torch.arange(scale.numel()).reshape(scale.shape) % (2 * half)
    full, shift = scale.float()[:, groups], zero[:, groups]
    codes = ((weight / full).round() + shift).clamp(0, 2 * half - 1)
    parts = {
        "qweight": pack(codes, bits).mT,
        "qzeros": pack((zero - less).mT % (2 * half), bits),
        "scales": scale.mT,
        "g_idx": groups.int(),
    }
    return parts, (codes - shift) * full


def awq(weight: Tensor) -> Encoded:
    """Eight rows to a word: the first, third, fifth, seventh, then the others."""
    parts, _ = gptq(weight, 4, 0)
    scale, groups = parts["scales"].mT.float(), parts.pop("g_idx").long()
    zero = torch.arange(scale.numel()).reshape(scale.shape) % 8 + 4
    codes = ((weight / scale[:, groups]).round() + zero[:, groups]).clamp(0, 15)
    for name, rows in (("qweight", codes.mT), ("qzeros", zero.mT)):
        eights = rows.unflatten(-1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        parts[name] = pack(eights.flatten(-2), 4)
    return parts, (codes - zero[:, groups]) * scale[:, groups]


def rows_of_int8(weight: Tensor) -> Encoded:
    """Of bitsandbytes."""
    largest = weight.abs().amax(-1)
    codes = (weight / largest[:, None] * 127).round().to(torch.int8)
    parts = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0).byte()}
    return parts, codes.float() * (largest / 127)[:, None]


TABLE = torch.linspace(-1, 1, 16) ** 3


def line_of_four_bits(weight: Tensor, size: int, nested: bool) -> Encoded:
    """Of bitsandbytes: all rows behind one another, in blocks of `size`, whose scales may be in
    8 bits themselves."""
    line = weight.flatten()
    blocks = torch.arange(len(line)) // size
    scale = torch.stack([line[blocks == each].abs().max() for each in range(int(blocks[-1]) + 1)])
    state = {"quant_type": "nf4", "blocksize": size, "shape": list(weight.shape)}
    parts = {"weight.absmax": scale, "weight.quant_map": TABLE}
    if nested:
        values, offset, outer_size = torch.linspace(-1, 1, 256), 0.25, 5
        outer = torch.full((-(-len(scale) // outer_size),), 3.0)
        outer[::2] = 4.0
        spread_outer = outer[torch.arange(len(scale)) // outer_size]
        codes = (((scale - offset) / spread_outer)[:, None] - values).abs().argmin(-1)
        scale = values[codes] * spread_outer + offset
        state |= {"nested_blocksize": outer_size, "nested_offset": offset}
        parts |= {
            "weight.absmax": codes.byte(),
            "weight.nested_absmax": outer,
            "weight.nested_quant_map": values,
        }
    codes = ((line / scale[blocks])[:, None] - TABLE).abs().argmin(-1)
    pairs = torch.cat((codes, codes.new_zeros(len(codes) % 2))).unflatten(0, (-1, 2))
    parts["weight"] = (pairs[:, 0] << 4 | pairs[:, 1]).byte()[:, None]
    text = json.dumps(state).encode()
    parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text)).byte()
    return parts, (TABLE[codes] * scale[blocks]).view(weight.shape)
