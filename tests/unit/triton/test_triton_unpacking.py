"""Bytes of weights become floats as the assembly says.

The interpreter converts in another way, so the instructions are followed here.
"""

import inspect
import re

import numpy as np
import pytest
import torch
from triton_cases import launching

from sidewinder.ops import triton_math
from sidewinder.ops.triton_math import from_int8

assert launching.is_installed()

FLOATS = {"f32": np.float32, "bf16x2": torch.bfloat16, "f16x2": torch.float16}


def test_bytes_become_float32_as_the_assembly_says():
    """The interpreter converts in another way, so the instructions are followed here."""
    source = inspect.getsource(from_int8.fn)
    words = re.findall(r"xor\.b32 turned, \$4, (0x\w+);\s*mov\.b32 high, (0x\w+);", source)
    mask, high = (int(number, 16) for number in words[0])
    chosen = re.findall(r"prmt\.b32 \$(\d), turned, high, (0x\w+);", source)
    offset = float(re.findall(r"return shifted - ([\d.]+)", source)[0])
    numbers = np.arange(-128, 128, dtype=np.int8).reshape(-1, 4)
    turned = (numbers.view(np.uint32) ^ np.uint32(mask)).view(np.uint8).reshape(-1, 4)
    both = np.concatenate([turned, np.tile(np.uint32(high)[None].view(np.uint8), (64, 1))], 1)
    assert [int(place) for place, _ in chosen] == [0, 1, 2, 3]
    for place, selector in chosen:
        bytes_ = [both[:, int(selector, 16) >> 4 * byte & 7] for byte in range(4)]
        result = np.stack(bytes_, 1).copy().view(np.float32)[:, 0] - np.float32(offset)
        assert (result == numbers[:, int(place)]).all()


def followed(assembly: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Registers, as 32 bits each, after the few instructions that `from_int4` is made of."""
    found = dict(inputs)

    def value(operand: str) -> np.ndarray:
        if operand in found:
            return found[operand]
        digits = operand.removeprefix("0f")
        return np.uint32(int(digits, 0 if digits == operand else 16))

    for line in re.findall(r"^\s*([a-z]\S*) (.+);", assembly, re.MULTILINE):
        name, (target, *operands) = line[0], line[1].split(", ")
        values = [value(each) for each in operands]
        if name == "mov.b32":
            found[target] = values[0]
        elif name == "shr.u32":
            found[target] = values[0] >> values[1]
        elif name == "lop3.b32":
            assert values[3] == 0xEA, "a & b | c"
            found[target] = values[0] & values[1] | values[2]
        elif name == "prmt.b32":
            both = values[0].astype(np.uint64) | values[1].astype(np.uint64) << np.uint64(32)
            chosen = [(both >> np.uint64(8 * (int(values[2]) >> 4 * n & 7))) & np.uint64(255)
                      for n in range(4)]  # fmt: skip
            found[target] = sum(each << np.uint64(8 * n) for n, each in enumerate(chosen)).astype(
                np.uint32
            )
        elif name == "sub.f32":
            one, other = (np.atleast_1d(each).view(np.float32) for each in values)
            found[target] = (one - other).view(np.uint32)
        else:
            kind = FLOATS[name.removeprefix("fma.rn.")]
            x, one, offset = (halves(np.atleast_1d(each), kind) for each in values)
            assert (one == 1).all()
            total = (x.double() + offset.double()).to(kind)
            found[target] = total.view(torch.int16).numpy().view(np.uint32)[:, 0]
    return found


def halves(words: np.ndarray, kind: torch.dtype) -> torch.Tensor:
    """The lower and the upper half of each word, in columns."""
    return torch.from_numpy(words.astype(np.uint32)).view(torch.int16).view(-1, 2).view(kind)


@pytest.mark.parametrize("name", ["INT4_AS_FLOATS", "INT4_AS_BF16", "INT4_AS_F16"])
def test_int4_becomes_floats_as_the_assembly_says(name):
    numbers = np.random.default_rng(1).permutation(np.arange(256, dtype=np.uint8)).reshape(-1, 4)
    numbers = np.concatenate([numbers, numbers[::-1, ::-1]])
    expected = [(numbers & 15).astype(int) - 8, (numbers >> 4).astype(int) - 8]
    word = np.ascontiguousarray(numbers).view(np.uint32)[:, 0]
    assembly = getattr(triton_math, name).value
    if name == "INT4_AS_FLOATS":
        registers = followed(assembly, {"$8": word})
        columns = [registers[f"${n}"].view(np.float32) for n in range(8)]
        found = [np.stack(columns[:4], 1), np.stack(columns[4:], 1)]
    else:
        registers = followed(assembly, {"$4": word})
        kind = torch.bfloat16 if name == "INT4_AS_BF16" else torch.float16
        pairs = [halves(registers[f"${n}"], kind).float().numpy() for n in range(4)]
        found = [np.concatenate(pairs[:2], 1), np.concatenate(pairs[2:], 1)]
    for one, other in zip(expected, found, strict=True):
        assert (one == other).all()
