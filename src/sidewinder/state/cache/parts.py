"""A rank's part of a state as a file, and reading one's own part back, whatever ranks wrote it.

A part says for each tensor which ranges of the whole model's channels or heads it holds, so a group
of another size finds its own ranges in the parts that overlap them. A part is read as a whole or
not at all: that is what its checksum covers.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.slicing import Bands, Piece, Split, local_shape, pieces

FAILURES = (OSError, ValueError, KeyError, SafetensorError)
"""What reading or writing a part raises when file or disk are not good."""

Rules = Mapping[str, Split | Bands]

_NAME = re.compile(r"[0-9a-f]+\.(\d+)-of-(\d+)\.safetensors")


@dataclass(frozen=True)
class Place:
    """Where the parts of this model's states are.

    Attributes:
        folder: of the files.
        fingerprint: of what may be resumed; stands in every part.
    """

    folder: Path
    fingerprint: str


def write_part(
    place: Place, key: str, tensors: Mapping[str, Tensor], rules: Rules, tp: TensorParallel
) -> None:
    """Write this rank's part of state `key`.

    Raises:
        OSError, SafetensorError: if the disk does not take it; nothing of it is left then.
    """
    stored = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    ranges = {
        name: [[piece.start, piece.stop, piece.local_start] for piece in pieces(rule, tp.rank)]
        for name, rule in rules.items()
    }
    metadata = {
        "fingerprint": place.fingerprint,
        "ranges": json.dumps(ranges),
        "checksum": _checksum(stored, ranges),
    }
    target = place.folder / f"{key}.{tp.rank}-of-{tp.size}.safetensors"
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        save_file(stored, temporary, metadata)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read_part(place: Place, key: str, rules: Rules, tp: TensorParallel) -> dict[str, Tensor]:
    """This rank's part of state `key`, in host memory.

    Args:
        place: where it is.
        key: of the state.
        rules: of states, for a group of `tp.size` ranks.
        tp: which rank of how many; the writers' group may have had another size.

    Raises:
        ValueError: if parts are missing, damaged or of another model, or do not cover this rank.
        OSError, SafetensorError: if a file cannot be read.
    """
    own = {name: list(pieces(rule, tp.rank)) for name, rule in rules.items()}
    found: dict[str, Tensor] = {}
    filled: dict[str, Tensor] = {}
    for file in _parts(place.folder, key, tp.size):
        for name, tensor, theirs in _load(file, place.fingerprint, own):
            rule = rules[name]
            if name not in found:
                found[name] = tensor.new_empty(local_shape(rule, tensor.shape, tp.rank))
                filled[name] = torch.zeros(found[name].shape[rule.dim], dtype=torch.bool)
            for shared, source, target in _overlaps(theirs, own[name]):
                width = len(shared)
                part = tensor.narrow(rule.dim, source, width)
                found[name].narrow(rule.dim, target, width).copy_(part)
                filled[name][target : target + width] = True
    if not found or not all(bool(mask.all()) for mask in filled.values()):
        raise ValueError(f"the parts of {key} do not cover rank {tp.rank} of {tp.size}")
    return found


def _parts(folder: Path, key: str, preferred: int) -> list[Path]:
    """The files of one complete set of parts; that of `preferred` ranks if there are several."""
    sets: dict[int, dict[int, Path]] = {}
    for file in folder.glob(f"{key}.*.safetensors"):
        match = _NAME.fullmatch(file.name)
        if match is not None:
            sets.setdefault(int(match[2]), {})[int(match[1])] = file
    complete = {size: files for size, files in sets.items() if len(files) == size}
    if not complete:
        raise ValueError(f"a part of {key} is missing in {folder}")
    files = complete[preferred if preferred in complete else min(complete)]
    return [files[rank] for rank in sorted(files)]


def _load(
    file: Path, fingerprint: str, own: Mapping[str, list[Piece]]
) -> Iterator[tuple[str, Tensor, list[Piece]]]:
    """Name, tensor and ranges of what a part holds; nothing if it has nothing of `own`."""
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata() or {}
        if metadata.get("fingerprint") != fingerprint:
            raise ValueError(f"{file.name} is of another model or of other settings")
        ranges = json.loads(metadata["ranges"])
        theirs = {name: [Piece(*values) for values in ranges[name]] for name in own}
        if not any(list(_overlaps(theirs[name], own[name])) for name in own):
            return
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    if metadata["checksum"] != _checksum(tensors, ranges):
        raise ValueError(f"{file.name} is damaged: its checksum does not fit")
    for name, tensor in tensors.items():
        yield name, tensor, theirs[name]


def _overlaps(theirs: list[Piece], own: list[Piece]) -> Iterator[tuple[range, int, int]]:
    """Global ranges that both have, and where they begin in either's tensor."""
    for piece in theirs:
        for wanted in own:
            start, stop = max(piece.start, wanted.start), min(piece.stop, wanted.stop)
            if start < stop:
                in_theirs = piece.local_start + start - piece.start
                yield range(start, stop), in_theirs, wanted.local_start + start - wanted.start


def _checksum(tensors: Mapping[str, Tensor], ranges: object) -> str:
    digest = hashlib.sha256(json.dumps(ranges, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
