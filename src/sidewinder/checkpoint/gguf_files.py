"""GGUF files (llama.cpp's format) as named tensors, of which a rank reads and widens its part."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidewinder.checkpoint.gguf_header import GgufHeader, TensorInfo, read_header
from sidewinder.checkpoint.layouts import Shape, View
from sidewinder.checkpoint.stored import StoredTensor

SUFFIX = ".gguf"
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

_PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types whose values are in the file as they are; all others are blocks of integers and scales."""


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that `path` is, or that the folder `path` holds instead of other weights.

    Of a model in several files it is the first.

    Raises:
        ValueError: if the folder holds several models.
    """
    if path.suffix == SUFFIX and not path.is_dir():
        return _first_part(path)
    if not path.is_dir() or any(path.glob("*.safetensors")) or any(path.glob("*.bin")):
        return None
    models = sorted({_first_part(file) for file in path.glob(f"*{SUFFIX}")})
    if len(models) > 1:
        names = ", ".join(model.name for model in models)
        raise ValueError(f"{path} holds {len(models)} GGUF models ({names}); give one of the files")
    return models[0] if models else None


def gguf_parts(file: Path) -> list[Path]:
    """All files of the model whose first one is `file`.

    Raises:
        ValueError: if one is missing.
    """
    match = _PART.fullmatch(file.name)
    if match is None:
        return [file]
    parts = [_part(file, match, number + 1) for number in range(int(match["count"]))]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ValueError(
            f"{file.parent} lacks {len(missing)} of the {len(parts)} files of {match['stem']}: "
            f"{missing[0]}{' and others' if len(missing) > 1 else ''}; fetch all of them"
        )
    return parts


def _first_part(file: Path) -> Path:
    match = _PART.fullmatch(file.name)
    return file if match is None else _part(file, match, 1)


def _part(file: Path, match: re.Match[str], number: int) -> Path:
    return file.with_name(f"{match['stem']}-{number:05d}-of-{match['count']}{SUFFIX}")


def open_gguf(file: Path) -> dict[str, StoredTensor]:
    """Map every tensor of a model by its GGUF name, without reading any.

    `ssm_a` holds A; it is given as the logarithm of -A, which other checkpoints store.

    Raises:
        ValueError: if a file is missing, truncated or corrupt, a tensor reaches beyond its end or
            is of a type that cannot be read, or the package `gguf` is needed and not installed.
    """
    tensors: dict[str, StoredTensor] = {}
    for part in gguf_parts(file):
        header = read_header(part)
        for info in header.tensors:
            if info.name in tensors:
                raise ValueError(f"{part} holds {info.name} twice, or another part does")
            tensors[info.name] = _open_tensor(header, info)
    return tensors


def _open_tensor(header: GgufHeader, info: TensorInfo) -> StoredTensor:
    file, (name, block, size) = header.file, gguf_type(header.file, info)
    row = info.shape[-1] if info.shape else 1
    if not math.prod(info.shape):
        raise ValueError(
            f"{file}: {info.name} has shape {list(info.shape)}, without a value; the file is "
            "corrupt, fetch it again"
        )
    if row % block:
        raise ValueError(
            f"{file}: {info.name} has rows of {row} values, and {name} packs {block} at a time; "
            "the file is corrupt, fetch it again"
        )
    n_bytes = math.prod(info.shape) // block * size
    if info.start + n_bytes > len(header.data):
        raise ValueError(
            f"{file} is truncated or corrupt: {info.name} ends at byte {info.start + n_bytes} of "
            f"{len(header.data)}; fetch it again"
        )
    view: View
    if name in _PLAIN:
        dtype = _PLAIN[name]
        view = _mapped(header, info, dtype, math.prod(info.shape)).reshape(info.shape)
    else:
        stored = (*info.shape[:-1], row // block * size)
        data = _mapped(header, info, torch.uint8, n_bytes).reshape(stored)
        dtype, view = torch.float32, _Blocks(file, info, data.numpy(), block, size)
    if info.name.endswith(".ssm_a"):
        view = _LogOfNegated(file, info.name, view)
    return StoredTensor(file, info.shape, dtype, view)


def _mapped(header: GgufHeader, info: TensorInfo, dtype: torch.dtype, count: int) -> Tensor:
    return torch.frombuffer(header.data, dtype=dtype, count=count, offset=info.start)


def gguf_type(file: Path, info: TensorInfo) -> tuple[str, int, int]:
    """The name of a tensor's type, the values that a block of it holds, and its bytes.

    Raises:
        ValueError: if it is none that can be read here.
    """
    gguf = gguf_package(file)
    try:
        kind = gguf.GGMLQuantizationType(info.kind)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if kind.name not in _PLAIN:
            gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"{file}: {info.name} is of type {info.kind}, which the package gguf cannot widen "
            f"({error}); update it, or convert the model to F16, BF16, Q8_0, Q4_K or another it can"
        ) from error
    return kind.name, block, size


def gguf_package(file: Path) -> Any:
    """The optional package that knows the types.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ValueError(
            f"{file} is a GGUF file, and reading it needs the package gguf: pip install gguf"
        ) from error
    return gguf


@dataclass(frozen=True)
class _Blocks:
    """A tensor in blocks along its last dimension: those that a slice touches become float32."""

    file: Path
    info: TensorInfo
    data: np.ndarray[Any, Any]
    block: int
    size: int

    @cached_property
    def _kind(self) -> Any:
        return gguf_package(self.file).GGMLQuantizationType(self.info.kind)

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor:
        shape: Shape = self.info.shape
        *leading, last = (*index, *(slice(None),) * (len(shape) - len(index)))
        start, stop, _ = last.indices(shape[-1])
        first, end = start // self.block, -(-stop // self.block)
        touched = self.data[(*leading, slice(first * self.size, end * self.size))]
        skipped = first * self.block
        if not touched.size:  # the package takes no empty arrays
            return torch.empty(*touched.shape[:-1], max(0, stop - start))
        # Contiguous, because the package reshapes it.
        quants = gguf_package(self.file).quants
        values = quants.dequantize(np.ascontiguousarray(touched), self._kind)
        return torch.from_numpy(values)[..., start - skipped : stop - skipped]


@dataclass(frozen=True)
class _LogOfNegated:
    """A, given as A_log, of which it is the negated exponential."""

    file: Path
    name: str
    inner: View

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor:
        values = self.inner[index].float()
        if not bool((values <= 0).all()):
            raise ValueError(
                f"{self.file}: {self.name} holds values above zero or none at all (NaN), and A is "
                "negative; the file is corrupt, or was not written by llama.cpp's converter"
            )
        return (-values).log()


def largest_type(file: Path, tensors: Iterable[TensorInfo]) -> str:
    """The name of the type of the largest tensor."""
    largest = max(tensors, key=lambda info: math.prod(info.shape))
    return gguf_type(file, largest)[0]
