"""Inputs of the codec tests, and the ways to run them."""

import math

import torch

from sidewinder.ops.codec import CODECS, decode, encode, reduce

QUANTISED = ("int8", "int6", "int4")
GAUSSIAN_DB = {"bf16": 52.0, "int8": 40.8, "int6": 30.4, "int4": 18.3}
"""Signal to noise of a sum of Gaussians with two roundings (one: about 3 dB more)."""

SHAPES = [(1, 1), (1, 31), (3, 32), (2, 33), (5, 127), (4, 128), (3, 129), (1, 768), (7, 300)]


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def one_shot(parts: torch.Tensor, name: str) -> torch.Tensor:
    """Sum `[ranks, rows, width]` as a one-shot all-reduce does; in the parts' dtype."""
    codec = CODECS[name]
    messages = torch.stack([encode(part, codec) for part in parts])
    return decode(messages, codec, torch.empty_like(parts[0]).fill_(torch.nan))


def two_shot(parts: torch.Tensor, name: str, stripes: int | None = None) -> torch.Tensor:
    """Sum `[ranks, rows, width]` as a two-shot all-reduce does; in the parts' dtype."""
    codec = CODECS[name]
    stripes = len(parts) if stripes is None else stripes
    messages = torch.stack([encode(part, codec, stripes) for part in parts])
    sums = torch.stack([reduce(messages[:, s].contiguous(), codec) for s in range(stripes)])
    return decode(sums[None], codec, torch.empty_like(parts[0]).fill_(torch.nan))


def round_trip(x: torch.Tensor, name: str) -> torch.Tensor:
    return one_shot(x[None], name)


def sqnr_db(reference: torch.Tensor, result: torch.Tensor) -> float:
    """Signal to quantisation noise in decibels."""
    noise = (reference.double() - result.double()).square().sum()
    return 10 * math.log10(float(reference.double().square().sum() / noise))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, except that any NaN equals any other."""
    kind = {4: torch.int32, 2: torch.int16, 1: torch.uint8}[a.element_size()]
    equal = a.view(kind) == b.view(kind)
    if a.is_floating_point():
        equal |= a.isnan() & b.isnan()
    return a.dtype == b.dtype and a.shape == b.shape and bool(equal.all())
