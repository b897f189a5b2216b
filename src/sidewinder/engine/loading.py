"""A rank's weights as an `EngineConfig` asks for them: read or drawn, rotated, rounded, packed; and
its part of the model from them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sidewinder.checkpoint.random import iter_random_shard
from sidewinder.checkpoint.reader import iter_shard
from sidewinder.collectives.base import Collectives
from sidewinder.config import EngineConfig, ModelConfig
from sidewinder.engine.counted import CallCounter, CountedCollectives
from sidewinder.engine.memory import check_weights_fit, gather_integer, least_free_bytes
from sidewinder.layers.overlap import overlap_of
from sidewinder.layers.weights import Weight
from sidewinder.models.base import Model
from sidewinder.models.registry import build_model
from sidewinder.ops import native_linear
from sidewinder.packing import pack_weights
from sidewinder.parallel.devices import DTYPES, torch_device
from sidewinder.parallel.group import TensorParallel
from sidewinder.quantise import QuantisedWeight, quantise_weights
from sidewinder.rotation import block_hadamard, fold_rotation
from sidewinder.sharding.sizes import loading_bytes


def load_weights(
    engine: EngineConfig,
    model: ModelConfig,
    tp: TensorParallel,
    dtype: torch.dtype,
    device: torch.device,
) -> Mapping[str, Weight]:
    """This rank's weights, by the names of docs/architecture.md.

    Args:
        engine: `load_format`, `rotate` and `weight_dtype` are used here; `model` is a local folder.
        model: the architecture.
        tp: which rank of how many.
        dtype: of the weights that are not rounded.
        device: where they go.

    Raises:
        ValueError: if the checkpoint or `tp` does not fit.
    """
    parameters = _parameters(engine, model, tp, dtype, device)
    tied = model.tie_embeddings
    if engine.rotate:
        rotated = fold_rotation(dict(parameters), model, block_hadamard(model.d_model))
        parameters, tied = _taken(rotated), False
        del rotated
    prepared: dict[str, Tensor | QuantisedWeight]
    if engine.weight_dtype != "auto":
        prepared, tied = quantise_weights(parameters, tied, engine.weight_dtype), False
    else:
        prepared = dict(parameters)
    return pack_weights(prepared, tied, native_linear.packed_bits(device))


def _parameters(
    engine: EngineConfig,
    model: ModelConfig,
    tp: TensorParallel,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[tuple[str, Tensor]]:
    """One after another, drawn or read onto the device."""
    if engine.load_format == "random":
        return iter_random_shard(model, tp, dtype, device)
    progress = engine.progress and tp.rank == 0
    return iter_shard(Path(engine.model), model, tp, dtype, device, progress)


def _taken(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What `weights` has, taken out one by one."""
    for name in list(weights):
        yield name, weights.pop(name)


def load_model(
    engine: EngineConfig, model: ModelConfig, collectives: Collectives, counter: CallCounter
) -> tuple[Model, int]:
    """This rank's part of the model, whose collectives `counter` counts, and its bytes.

    Raises:
        ValueError: if the checkpoint or `tp` does not fit, or memory is too small.
    """
    tp, device, dtype = collectives.tp, torch_device(engine.device), DTYPES[engine.dtype]
    needed = loading_bytes(model, tp, dtype, engine.weight_dtype)
    needed = max(gather_integer(needed, device, collectives))
    check_weights_fit(needed, least_free_bytes(device, collectives))
    weights = load_weights(engine, model, tp, dtype, device)
    n_bytes = sum(tensor.nbytes for tensor in weights.values())
    overlap = overlap_of(engine.overlap, collectives)
    counted = CountedCollectives(collectives, counter)
    return build_model(model, tp, weights, counted, overlap), n_bytes
