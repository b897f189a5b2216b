"""Reading one rank's shard of a checkpoint: only its own bytes, strictly, converted on the way."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sidewinder.checkpoint.files import open_weights
from sidewinder.checkpoint.layouts import Layout
from sidewinder.checkpoint.names import Source, checkpoint_sources
from sidewinder.checkpoint.stored import StoredTensor
from sidewinder.config import ModelConfig
from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.plan import is_float32, parameter_shapes, sharding_plan
from sidewinder.sharding.slicing import Replicate, Rule, Split, local_shape, pieces

NAMES_IN_ERRORS = 6
VALUES_AT_ONCE = 1 << 24
"""Of a matrix that is split by row, read and copied together."""


def load_shard(
    folder: str | Path,
    config: ModelConfig,
    tp: TensorParallel,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Tensor]:
    """Rank `tp.rank`'s weights by our names (docs/architecture.md), contiguous, in own storage.

    Args:
        folder: local folder with the weight files, or a GGUF file (see `hub.resolve_model` for hub
            ids).
        config: the model, as `load_model_config(folder)` read it.
        tp: which rank of how many.
        dtype: of the weights; parameters that `is_float32` names stay float32.
        device: where the tensors go.
        progress: show a progress bar on standard error.

    Raises:
        ValueError: if a file is missing or broken, a parameter is missing, unknown or misshapen, or
            `tp` does not fit the model. Nothing is allocated before these checks.
    """
    return dict(iter_shard(Path(folder), config, tp, dtype, device, progress))


def iter_shard(
    folder: Path,
    config: ModelConfig,
    tp: TensorParallel,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """`load_shard`, one parameter at a time."""
    plan, shapes = sharding_plan(config, tp.size), parameter_shapes(config)
    sources, weights = checkpoint_sources(config), open_weights(folder)
    stored = _match(folder, sources, weights)
    if config.tie_embeddings:
        _check_tied_head(plan["embedding.weight"], stored["embedding.weight"], weights, tp.rank)
    for name, source in sources.items():
        if name.startswith("shared.") or ".adapter." in name:
            _check_repeats(name, source, plan[name], weights, tp.rank)
    locals_ = {name: local_shape(rule, shapes[name], tp.rank) for name, rule in plan.items()}
    total = sum(math.prod(shape) * stored[name].dtype.itemsize for name, shape in locals_.items())
    with tqdm(
        desc="weights",
        total=total,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        disable=not progress,
    ) as bar:
        for name, rule in plan.items():
            own = torch.float32 if is_float32(name) else dtype
            target = torch.empty(locals_[name], dtype=own, device=device)
            _read_into(target, rule, sources[name].layout, stored[name], tp.rank)
            bar.update(target.numel() * stored[name].dtype.itemsize)
            yield name, target


def _read_into(target: Tensor, rule: Rule, layout: Layout, stored: StoredTensor, rank: int) -> None:
    """Copy `rank`'s pieces from the file; the copy converts dtype and moves to the device."""
    if isinstance(rule, Replicate):
        target.copy_(layout.read(stored.view, 0, target.shape[layout.dim]))
        return
    assert rule.dim == layout.dim, "a layout reads along the dimension that the plan splits"
    # Blocks of a GGUF file become float32 before they are copied: not a whole embedding at once.
    step = target.shape[rule.dim] or 1
    if rule.dim == 0:
        step = max(1, VALUES_AT_ONCE // math.prod(target.shape[1:]))
    for piece in pieces(rule, rank):
        for start in range(piece.start, piece.stop, step):
            stop = min(start + step, piece.stop)
            part = layout.read(stored.view, start, stop)
            local_start = piece.local_start + start - piece.start
            target.narrow(rule.dim, local_start, stop - start).copy_(part)


def _match(
    folder: Path, sources: dict[str, Source], weights: dict[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The stored tensor of every parameter; errors for missing, unknown and misshapen ones."""
    found = {
        name: next((key for key in source.keys if key in weights), None)
        for name, source in sources.items()
    }
    # One stored matrix may pack several parameters.
    missing = list(dict.fromkeys(sources[name].keys[0] for name in found if found[name] is None))
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} parameters of this model: {_some(missing)}; "
            "config.json (or GGUF metadata) and weights do not belong together, or a file is "
            "incomplete"
        )
    known = {key for source in sources.values() for key in source.keys}
    extra = sorted(set(weights) - known)
    if extra:
        raise ValueError(
            f"{folder} holds {len(extra)} parameters that this model lacks: {_some(extra)}; "
            "config.json (or GGUF metadata) and weights do not belong together"
        )
    stored = {name: weights[key] for name, key in found.items() if key is not None}
    for name, tensor in stored.items():
        if tensor.shape != sources[name].shape:
            raise ValueError(
                f"{tensor.file}: {found[name]} has shape {list(tensor.shape)} instead of "
                f"{list(sources[name].shape)}; config.json (or GGUF metadata) and weights do not "
                "belong together"
            )
    return stored


def _check_tied_head(
    rule: Rule, embedding: StoredTensor, weights: dict[str, StoredTensor], rank: int
) -> None:
    """Where a tied head is stored again, it must be the embedding (checked on this rank's rows)."""
    head = weights.get("lm_head.weight")
    if head is None:
        return
    assert isinstance(rule, Split)
    rows = (slice(rule.shares[rank].start, rule.shares[rank].stop),)
    if head.shape != embedding.shape or not _equal(head.view[rows], embedding.view[rows]):
        raise ValueError(
            f"{head.file}: lm_head.weight differs from the embedding although config.json says "
            "that they are tied; set tie_word_embeddings (or tie_embeddings) to false there"
        )


def _check_repeats(
    name: str, source: Source, rule: Rule, weights: dict[str, StoredTensor], rank: int
) -> None:
    """Where a shared block is stored again, it must be the same one (checked on this rank's part).

    transformers gives every hybrid layer a block of its own when `tie_word_embeddings` is false, so
    such a checkpoint can exist, and it is another model than the one that the family describes.
    """
    first, *others = (key for key in source.keys if key in weights)
    part = [slice(None)] * len(weights[first].shape)
    if isinstance(rule, Split):
        part[rule.dim] = slice(rule.shares[rank].start, rule.shares[rank].stop)
    for other in others:
        one, again = weights[first], weights[other]
        same = one.shape == again.shape
        if not same or not _equal(one.view[tuple(part)], again.view[tuple(part)]):
            raise ValueError(
                f"{again.file}: {other} differs from {first}, but hybrid layers share one block "
                f"({name}); models with a block per layer are not supported"
            )


def _equal(one: Tensor, again: Tensor) -> bool:
    """The same values; one of them may have been stored in fewer bits."""
    if one.dtype != again.dtype:
        one, again = one.float(), again.float()
    return torch.equal(one, again)


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - NAMES_IN_ERRORS
    return ", ".join(names[:NAMES_IN_ERRORS]) + (f" and {rest} more" if rest > 0 else "")
