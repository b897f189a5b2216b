"""What crosses ranks in a step: every collective of a model, its group and its size."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sidewinder.config import ModelConfig
from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.dims import LocalDims, channel_shares


@dataclass(frozen=True)
class Collective:
    """One kind of message.

    Attributes:
        name: what is sent.
        operation: "all_reduce" or "all_gather".
        layers: how many layers send it in a step; 1 for what is sent once.
        per: "token", or "sampled row" for what only rows with logits need.
        ranks: size of the group that exchanges it.
        elements: of one message, per token or row (a gather's: of its result).
        bytes: of those elements.
    """

    name: str
    operation: str
    layers: int
    per: str
    ranks: int
    elements: int
    bytes: int


def collectives_of(config: ModelConfig, size: int, dtype: torch.dtype) -> list[Collective]:
    """Every collective of a step on `size` ranks, in order; empty for one rank.

    Raises:
        ValueError: if the model cannot be split over `size` ranks; names the valid sizes.
    """
    dims = LocalDims.of(config, TensorParallel(0, size))
    if size == 1:
        return []
    layers, width = len(config.mixer_layers), config.d_model

    def all_reduce(name: str, count: int, elements: int, ranks: int = size) -> Collective:
        itemsize = dtype.itemsize
        return Collective(name, "all_reduce", count, "token", ranks, elements, elements * itemsize)

    found = [all_reduce("embedding sum", 1, width)]
    if config.attention is not None and not config.is_parallel:
        found.append(all_reduce("attention.o sum", len(config.attention.layers), width))
    if config.n_mlp_calls:
        found.append(all_reduce("mlp.down sum", config.n_mlp_calls, width))
    if config.experts is not None:
        found.append(all_reduce("experts sum", len(config.experts.layers), width))
    if config.is_mamba2:
        found.extend(_mamba2_collectives(config, size, dtype))
    else:
        sharers = len(dims.x_proj_partition[0])
        if sharers > 1:
            elements = dims.x_proj_heads.size * (config.dt_rank + 2 * config.d_state)
            found.append(all_reduce("x_proj sum", layers, elements, sharers))
        found.append(all_reduce("out_proj sum", layers, width))
    logits = config.vocab_size
    found.append(
        Collective(
            "logits gather", "all_gather", 1, "sampled row", size, logits, logits * dtype.itemsize
        )
    )
    return found


def _mamba2_collectives(config: ModelConfig, size: int, dtype: torch.dtype) -> Iterator[Collective]:
    """The gated norm's three cases (docs/sharding.md), and the sum of `out_proj`, with the terms of
    attention beside the mixer."""
    group_size = config.d_inner // config.n_groups
    cut = any(share.stop % group_size for share in channel_shares(config, size))
    elements, layers = config.d_model, len(config.mixer_layers)
    if config.gated_norm and cut and config.n_groups == 1 and not config.is_parallel:
        # Sums of squares ride along: one column in float32, two per rank in 16 bits.
        elements += 1 if dtype == torch.float32 else 2 * size
    elif config.gated_norm and cut:
        groups = config.n_groups
        yield Collective(
            "gated norm's squares", "all_reduce", layers, "token", size, groups, 4 * groups
        )
    yield Collective(
        "out_proj sum", "all_reduce", layers, "token", size, elements,
        elements * dtype.itemsize,
    )  # fmt: skip
