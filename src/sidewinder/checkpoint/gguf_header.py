"""The header of a GGUF file: its metadata, and where its tensors are.

Our own, because the `gguf` package's reader makes an array of every token and merge: a vocabulary
of 50,000 takes it seconds, in every rank, and it follows a damaged file's counts without end.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidewinder.checkpoint.layouts import Shape
from sidewinder.checkpoint.stored import unreadable

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Of the tensors, in bytes, unless the metadata says another."""
MOST_DIMENSIONS = 4

_NO_RESERVE = 0x4000
"""Linux' MAP_NORESERVE, which Python 3.13 names: a file larger than memory may be mapped."""

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
"""Kinds of values, as the format numbers them."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's name, its shape (as torch orders dimensions), type number and first byte."""

    name: str
    shape: Shape
    kind: int
    start: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its tensors, and the mapped file (a private, writable map)."""

    file: Path
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    data: mmap.mmap


def read_header(file: Path) -> GgufHeader:
    """Map `file` and parse its header; no tensor is read.

    Raises:
        ValueError: if there is no such file, it is no little-endian GGUF file of version 2 or 3, or
            its header is cut off or makes no sense.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist; give a .gguf file, a model folder or a hub id")
    try:
        with file.open("rb") as opened:
            # torch wants memory that it may write to; pages that are written (none) are copied.
            data = mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_PRIVATE | _NO_RESERVE)
        return _parse(file, data)
    except (OSError, UnicodeDecodeError, struct.error, _BrokenError) as error:
        raise unreadable(file, error) from error
    except ValueError as error:  # an empty file cannot be mapped
        raise unreadable(file, error) from error


class _BrokenError(Exception):
    """A header that makes no sense."""


class _Cursor:
    """Goes through the header value by value; struct.error where the file ends too early."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.at = 0

    def scalar(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self._data, self.at)
        self.at += struct.calcsize(f"<{letter}")
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        self._expect(length)
        start, self.at = self.at, self.at + length
        return self._data[start : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise _BrokenError(f"metadata of unknown kind {kind}")
        return self.scalar(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            self._expect(8 * count)
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise _BrokenError(f"metadata with an array of kind {kind}")
        size = count * struct.calcsize(f"<{_SCALARS[kind]}")
        self._expect(size)
        start, self.at = self.at, self.at + size
        return list(struct.unpack_from(f"<{count}{_SCALARS[kind]}", self._data, start))

    def _expect(self, n_bytes: int) -> None:
        """Before anything of that size is made."""
        if n_bytes > len(self._data) - self.at:
            raise _BrokenError(f"it ends before {n_bytes} bytes at {self.at}")


def _parse(file: Path, data: mmap.mmap) -> GgufHeader:
    if data[: len(MAGIC)] != MAGIC:
        raise _BrokenError("it does not begin with GGUF")
    cursor = _Cursor(data)
    cursor.at = len(MAGIC)
    version = cursor.scalar("I")
    if version & 0xFFFF == 0:
        raise _BrokenError("it is big-endian; convert it for this kind of machine")
    if version not in VERSIONS:
        raise _BrokenError(
            f"GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read"
        )
    n_tensors, n_values = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = cursor.string()
        if key in metadata:
            raise _BrokenError(f"{key} is there twice")
        metadata[key] = cursor.value(cursor.scalar("I"))
    infos = [_tensor(cursor) for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _BrokenError(f"general.alignment={alignment!r} is no power of two")
    first = -(-cursor.at // alignment) * alignment
    placed = (TensorInfo(info.name, info.shape, info.kind, first + info.start) for info in infos)
    return GgufHeader(file, metadata, tuple(placed), data)


def _tensor(cursor: _Cursor) -> TensorInfo:
    """One entry of the table, its first byte counted from where the tensors begin."""
    name, n_dimensions = cursor.string(), cursor.scalar("I")
    if n_dimensions > MOST_DIMENSIONS:
        raise _BrokenError(f"{name} has {n_dimensions} dimensions")
    shape = tuple(cursor.scalar("Q") for _ in range(n_dimensions))[::-1]
    return TensorInfo(name, shape, cursor.scalar("I"), cursor.scalar("Q"))
