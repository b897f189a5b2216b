"""Bytes of parameters, as a rank keeps them and while they are loaded."""

from dataclasses import replace
from math import prod

import torch

from sidewinder.config import ModelConfig
from sidewinder.parallel.group import TensorParallel
from sidewinder.quantise import rounded_bits, rounded_bytes
from sidewinder.sharding.plan import is_float32, parameter_shapes, sharding_plan
from sidewinder.sharding.slicing import local_shape


def as_stored(config: ModelConfig, weight_dtype: str) -> ModelConfig:
    """`config` with the parameters that `weight_dtype` leaves: of rounded weights the head is one
    of its own (`quantise_weights`)."""
    return config if weight_dtype == "auto" else replace(config, tie_embeddings=False)


def parameter_bytes(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, weight_dtype: str = "auto"
) -> int:
    """Bytes of a parameter whose weights are in `dtype`, if they neither stay float32 nor are
    rounded."""
    bits = rounded_bits(name, weight_dtype)
    if bits is not None:
        return rounded_bytes(shape, bits)
    return prod(shape) * (4 if is_float32(name) else dtype.itemsize)


def shard_bytes(
    config: ModelConfig, tp: TensorParallel, dtype: torch.dtype, weight_dtype: str = "auto"
) -> int:
    """Bytes of one rank's weights in `dtype`, those that stay float32 or are rounded included."""
    stored = as_stored(config, weight_dtype)
    shapes = parameter_shapes(stored)
    return sum(
        parameter_bytes(name, local_shape(rule, shapes[name], tp.rank), dtype, weight_dtype)
        for name, rule in sharding_plan(stored, tp.size).items()
    )


def loading_bytes(
    config: ModelConfig, tp: TensorParallel, dtype: torch.dtype, weight_dtype: str = "auto"
) -> int:
    """What loading a rank's weights takes: them, and of those that are rounded the largest one
    before it is, for they are made one after the other."""
    shapes = parameter_shapes(config)
    whole = [
        parameter_bytes(name, local_shape(rule, shapes[name], tp.rank), dtype)
        for name, rule in sharding_plan(config, tp.size).items()
        if rounded_bits(name, weight_dtype) is not None
    ]
    return shard_bytes(config, tp, dtype, weight_dtype) + max(whole, default=0)
