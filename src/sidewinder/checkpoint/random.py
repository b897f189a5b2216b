"""Random weights of any configuration, for benchmarks and tests: no checkpoint needed."""

import math
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from sidewinder.config import ModelConfig
from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.plan import is_float32, parameter_shapes, sharding_plan
from sidewinder.sharding.slicing import Replicate, Rule, local_shape, pieces

BLOCK_ROWS = 256
"""Rows that are drawn at once, from a seed of their own: a rank draws only the blocks it needs."""


def random_shard(
    config: ModelConfig,
    tp: TensorParallel,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Rank `tp.rank`'s part of a random model: names, shapes and dtypes as `load_shard` gives them.

    The global tensors depend on `seed`, the parameter's name and the kind of device only (a GPU
    draws other numbers than a CPU), so the shards of any `tp` belong to the same model. Scales keep
    activations of order one and the recurrence stable.

    Raises:
        ValueError: if `tp` does not fit the model.
    """
    return dict(iter_random_shard(config, tp, dtype, device, seed))


def iter_random_shard(
    config: ModelConfig,
    tp: TensorParallel,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Iterator[tuple[str, Tensor]]:
    """`random_shard`, one parameter at a time."""
    plan, shapes = sharding_plan(config, tp.size), parameter_shapes(config)
    for name, target in _empty_parameters(config, tp, dtype, device):
        _fill(target, plan[name], tp.rank, name, shapes[name], seed)
        yield name, target


def empty_shard(
    config: ModelConfig, tp: TensorParallel, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    """`random_shard`, not filled: on the device "meta" it takes no memory.

    Raises:
        ValueError: if `tp` does not fit the model.
    """
    return dict(_empty_parameters(config, tp, dtype, device))


def _empty_parameters(
    config: ModelConfig, tp: TensorParallel, dtype: torch.dtype, device: torch.device | str
) -> Iterator[tuple[str, Tensor]]:
    shapes = parameter_shapes(config)
    for name, rule in sharding_plan(config, tp.size).items():
        shape = local_shape(rule, shapes[name], tp.rank)
        own = torch.float32 if is_float32(name) else dtype
        yield name, torch.empty(shape, dtype=own, device=device)


def _fill(
    target: Tensor, rule: Rule, rank: int, name: str, shape: tuple[int, ...], seed: int
) -> None:
    """Draw block by block of global rows and keep this rank's part."""
    for first in range(0, shape[0], BLOCK_ROWS):
        last = min(first + BLOCK_ROWS, shape[0])
        if isinstance(rule, Replicate):
            target[first:last].copy_(_block(name, shape, first, last, seed, target.device))
        elif rule.dim == 1:
            block = _block(name, shape, first, last, seed, target.device)
            for piece in pieces(rule, rank):
                width = piece.stop - piece.start
                part = target[first:last].narrow(1, piece.local_start, width)
                part.copy_(block[:, piece.start : piece.stop])
        else:
            for piece in pieces(rule, rank):
                start, stop = max(piece.start, first), min(piece.stop, last)
                if start < stop:
                    block = _block(name, shape, first, last, seed, target.device)
                    local = piece.local_start + start - piece.start
                    target[local : local + stop - start].copy_(block[start - first : stop - first])


def _block(
    name: str, shape: tuple[int, ...], first: int, last: int, seed: int, device: torch.device
) -> Tensor:
    """Rows `[first, last)` of the global parameter, float32."""
    generator = torch.Generator(device)
    generator.manual_seed(zlib.crc32(f"{seed}/{name}/{first}".encode()))
    block = torch.empty(last - first, *shape[1:], device=device)
    kind = name.rsplit(".", 2)[-2:]
    if name.endswith(".A_log"):
        # exp(A_log) between 1 and 16, as models are initialised.
        return block.uniform_(1.0, 16.0, generator=generator).log_()
    if name.endswith((".dt_proj.bias", ".dt_bias")):
        # softplus of it is a step between 0.001 and 0.1.
        step = block.uniform_(math.log(1e-3), math.log(0.1), generator=generator).exp_()
        return step + torch.log(-torch.expm1(-step))
    if name.endswith(".D") or kind[0].endswith("norm"):
        return block.fill_(1.0)
    if name.endswith(".bias"):
        return block.normal_(0.0, 0.02, generator=generator)
    fan_in = shape[0] if name.endswith("conv.weight") else shape[-1]
    return block.normal_(0.0, fan_in**-0.5, generator=generator)
