"""The weight files of a folder, as named tensors that are read only where they are touched."""

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sidewinder.checkpoint.gguf_files import find_gguf, open_gguf
from sidewinder.checkpoint.quantised.config import find_quantisation
from sidewinder.checkpoint.quantised.matrices import dequantised
from sidewinder.checkpoint.stored import PLAIN_DTYPES, StoredTensor, unreadable

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
"""`<name>.index.json` lists the shards of a checkpoint in several files."""

STORED_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""By safetensors' names; all but the first four only in parts of quantised matrices."""


def open_weights(folder: Path) -> dict[str, StoredTensor]:
    """Map every weight file of `folder` (safetensors first, else `.bin`, else GGUF; a GGUF file may
    also be given itself) without reading weights. Matrices that are stored in few bits are widened
    when they are.

    Raises:
        ValueError: if there are no weight files, one is missing, truncated or corrupt, or holds
            something else than floating-point tensors and quantised matrices that can be read.
    """
    gguf = find_gguf(folder)
    if gguf is not None:
        return open_gguf(gguf)
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        found = _open_file(file)
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise ValueError(f"{file} holds {twice[0]}, which {tensors[twice[0]].file} holds too")
        tensors |= found
    if (quantisation := find_quantisation(folder)) is not None:
        tensors = dequantised(tensors, quantisation)
    for key, tensor in tensors.items():
        if tensor.dtype not in PLAIN_DTYPES:
            raise _bad_dtype(tensor.file, key, str(tensor.dtype))
    return tensors


def stored_dtype(folder: Path) -> str | None:
    """Name of the dtype in which `folder` stores most of its weights; None without weight files.

    For configurations that do not say it. Judged by the largest tensor of the first file there is
    that is not in few bits; the files may be missing where only the configuration is wanted.
    """
    files = [folder / SAFETENSORS, folder / BIN]
    for name in (SAFETENSORS, BIN):
        if (index := folder / (name + INDEX_SUFFIX)).is_file():
            files += _indexed_files(index)
    first = next((file for file in files if file.is_file()), None)
    opened = _open_file(first).values() if first else ()
    tensors = [tensor for tensor in opened if tensor.dtype in PLAIN_DTYPES]
    if not tensors:
        return None
    largest = max(tensors, key=lambda tensor: math.prod(tensor.shape))
    name = str(largest.dtype).removeprefix("torch.")
    return "float32" if name == "float64" else name


def weight_files(folder: Path) -> list[Path]:
    """The files that make up the checkpoint in `folder`.

    Raises:
        ValueError: if there are none, or one that an index names is missing.
    """
    for name in (SAFETENSORS, BIN):
        single, index = folder / name, folder / (name + INDEX_SUFFIX)
        if single.is_file():
            return [single]
        if index.is_file():
            return _require(_indexed_files(index), index)
    raise ValueError(
        f"{folder} holds no weights; expected {SAFETENSORS} or {BIN}, or their {INDEX_SUFFIX} "
        "with its shards, or a .gguf file"
    )


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} is not a checkpoint index ({error!r}); fetch it again"
        ) from error
    if not files:
        raise ValueError(f"{index} names no weight files; fetch it again")
    return files


def _require(files: list[Path], index: Path) -> list[Path]:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{index.parent} lacks {len(missing)} of {len(files)} weight files that {index.name} "
            f"names: {', '.join(missing)}; fetch the checkpoint again"
        )
    return files


def _open_file(file: Path) -> dict[str, StoredTensor]:
    return _open_safetensors(file) if file.suffix == ".safetensors" else _open_bin(file)


def _open_safetensors(file: Path) -> dict[str, StoredTensor]:
    try:
        handle: Any = safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise unreadable(file, error) from error
    tensors = {}
    for key in handle.keys():  # noqa: SIM118
        view = handle.get_slice(key)
        if view.get_dtype() not in STORED_DTYPES:
            raise _bad_dtype(file, key, view.get_dtype())
        dtype = STORED_DTYPES[view.get_dtype()]
        tensors[key] = StoredTensor(file, tuple(view.get_shape()), dtype, view)
    return tensors


def _open_bin(file: Path) -> dict[str, StoredTensor]:
    """torch's own format; only plain tensors are accepted, no other pickled objects."""
    try:
        # Files older than the zip format cannot be mapped: they are read as a whole.
        mapped = zipfile.is_zipfile(file)
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        # A damaged pickle fails in the unpickler's own ways: KeyError, AssertionError, ...
        raise unreadable(file, error) from error
    if not isinstance(weights, Mapping) or not all(
        isinstance(value, Tensor) for value in weights.values()
    ):
        raise ValueError(f"{file} is not a plain dictionary of tensors; save model.state_dict()")
    for key, value in weights.items():
        if value.dtype not in STORED_DTYPES.values():
            raise _bad_dtype(file, key, str(value.dtype))
    return {
        str(key): StoredTensor(file, tuple(value.shape), value.dtype, value)
        for key, value in weights.items()
    }


def _bad_dtype(file: Path, key: str, dtype: str) -> ValueError:
    names = ", ".join(str(known).removeprefix("torch.") for known in PLAIN_DTYPES)
    return ValueError(
        f"{file}: {key} is stored as {dtype}; supported: {names}, and parts of quantised matrices "
        "in checkpoints whose config.json says how they are stored (quantization_config)"
    )
