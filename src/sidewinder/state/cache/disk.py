"""The disk tier's index: which kept states are in the folder, and how much of it they take.

Every rank writes its part of a state, `<key>.<rank>-of-<ranks>.safetensors`; then the manifest
`<key>.json` is written here, which names the prefix. Without a manifest a part counts for nothing.
Files are written under another name and renamed, and hold checksums, so a crash, a full disk or
another process leaves nothing that could be mistaken for a state.
"""

import hashlib
import json
import os
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidewinder.state.cache.radix import Node
from sidewinder.writable import check_folder

FORMAT = 1
"""Version of manifests and parts; a change makes older ones strangers."""

OVERHEAD_BYTES = 16384
"""A part's header and its share of the manifest, for planning; real sizes count once written."""

_OURS = re.compile(r"([0-9a-f]{32})\.(json|\d+-of-\d+\.safetensors)(\.\d+\.tmp)?")


@dataclass(frozen=True)
class Found:
    """A state that an earlier run left: its key and its prefix."""

    key: str
    namespace: str
    tokens: tuple[int, ...]


@dataclass
class _Files:
    """The files of one key: their names, bytes, and when the newest was written."""

    names: set[str] = field(default_factory=set)
    n_bytes: int = 0
    time_s: float = 0.0


class DiskIndex:
    """What is in `folder`.

    Args:
        folder: made if it does not exist. Other files in it are left alone.
        limit: bytes that our files may take together, those of other models included.
        fingerprint: of what may be resumed (see `fingerprint`).
        n_ranks: parts that a new state has.

    Attributes:
        found: states of earlier runs, oldest first.
        used: bytes of all our files, and of those to be written.
        failure: why no more states are written; None until the first write that failed.
    """

    def __init__(self, folder: str | Path, limit: int, fingerprint: str, n_ranks: int) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self.fingerprint = fingerprint
        self.found: list[Found] = []
        self.used = 0
        self.failure: str | None = None
        self._closing = self._said = False
        self._n_ranks = n_ranks
        self._bytes: dict[str, int] = {}
        self._strangers: list[str] = []
        self._unreadable = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._scan()
        except OSError as error:
            self.unwritable(f"{error.strerror}: {self.folder}")
        if self.writable and not os.access(self.folder, os.W_OK):
            self.unwritable(f"the folder is read-only: {self.folder}")

    @property
    def writable(self) -> bool:
        """Whether new states are written."""
        return self.failure is None

    def bytes_on_disk(self, rank_bytes: int) -> int:
        """What a new state of `rank_bytes` on the largest rank takes at most."""
        return self._n_ranks * (rank_bytes + OVERHEAD_BYTES)

    def has_room(self, n_bytes: int) -> bool:
        """Whether `n_bytes` more stay within the limit."""
        return self.used + n_bytes <= self.limit

    def drop_stranger(self) -> bool:
        """Delete the oldest state that is not ours to resume; False if there is none."""
        if not self._strangers:
            return False
        self.delete(self._strangers.pop(0))
        return True

    def reserve(self, namespace: str, node: Node[Any], n_bytes: int) -> str:
        """The key under which the ranks may write the state at `node`, of at most `n_bytes`."""
        text = json.dumps([FORMAT, self.fingerprint, namespace, node.tokens()])
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._count(key, n_bytes)
        return key

    def commit(self, key: str, namespace: str, node: Node[Any]) -> str | None:
        """Write the manifest: the state counts from now on. Returns why not, or None."""
        content = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "namespace": namespace,
            "parts": self._n_ranks,
            "tokens": node.tokens(),
        }
        text = json.dumps(content | {"checksum": checksum(content)})
        target = self.folder / f"{key}.json"
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text)
            temporary.replace(target)
            sizes = [(self.folder / name).stat().st_size for name in self._part_names(key)]
        except OSError as error:
            return f"{error.strerror}: {target}"
        self._count(key, sum(sizes) + len(text))
        return None

    def delete(self, key: str) -> None:
        """Remove a state's files, the manifest first."""
        self.used -= self._bytes.pop(key, 0)
        try:
            for file in sorted(self.folder.glob(f"{key}.*"), key=lambda file: file.suffix):
                file.unlink(missing_ok=True)
        except OSError as error:
            self.unwritable(f"{error.strerror}: {self.folder}")

    def used_now(self, key: str) -> None:
        """Note on disk that a state was resumed, for the order of later runs."""
        try:
            os.utime(self.folder / f"{key}.json")
        except FileNotFoundError:
            pass  # Another process that shares the folder deleted it; a read would say so.
        except OSError as error:
            self.unwritable(f"{error.strerror}: {self.folder}")

    def unreadable(self, reason: str) -> None:
        """A state could not be read; says so once."""
        if not self._unreadable:
            self._unreadable = True
            _warn(f"a state in state_cache_dir could not be read and is left out ({reason})")

    def unwritable(self, reason: str) -> None:
        """A state could not be written or deleted: write no more; says so once."""
        if self.failure is not None:
            return
        self.failure = reason
        if not self._closing:
            self._said = True
            _warn(f"no more states are written to state_cache_dir ({reason})")

    def close(self) -> None:
        """What follows is written last: if that fails, `unwritten` says so, with what it costs."""
        self._closing = True

    def unwritten(self, n_states: int) -> None:
        """Say how many states are lost at the end, if the disk is to blame and nobody knows."""
        if n_states and self.failure is not None and not self._said:
            _warn(
                f"{n_states} kept states were not written to state_cache_dir {self.folder} "
                f"({self.failure}): their prompts run again after a restart; free some room"
            )

    def _scan(self) -> None:
        files = self._files()
        for key in sorted(files, key=lambda key: files[key].time_s):
            self._count(key, files[key].n_bytes)
            found = self._read_manifest(key, files[key].names)
            if found is None:
                self._strangers.append(key)
            else:
                self.found.append(found)
        if self._strangers:
            _warn(
                f"state_cache_dir: {len(self._strangers)} of {len(files)} states are of another "
                "model or of other settings, or damaged, and are not used"
            )

    def _files(self) -> dict[str, _Files]:
        """Our files by key."""
        files: dict[str, _Files] = {}
        for name in os.listdir(self.folder):
            match = _OURS.fullmatch(name)
            if match is None:
                continue
            try:
                stat = (self.folder / name).stat()
            except FileNotFoundError:
                continue  # Another process that shares the folder renamed or deleted it just now.
            own = files.setdefault(match[1], _Files())
            own.names.add(name)
            own.n_bytes += stat.st_size
            own.time_s = max(own.time_s, stat.st_mtime)
        return files

    def _read_manifest(self, key: str, names: set[str]) -> Found | None:
        try:
            content = json.loads((self.folder / f"{key}.json").read_text())
            given = content.pop("checksum")
            parts = {f"{key}.{rank}-of-{content['parts']}.safetensors"
                     for rank in range(content["parts"])}  # fmt: skip
            fits = given == checksum(content) and content["fingerprint"] == self.fingerprint
            if fits and content["format"] == FORMAT and parts <= names:
                return Found(key, content["namespace"], tuple(content["tokens"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # Damaged: a stranger.
        return None

    def _part_names(self, key: str) -> list[str]:
        return [f"{key}.{rank}-of-{self._n_ranks}.safetensors" for rank in range(self._n_ranks)]

    def _count(self, key: str, n_bytes: int) -> None:
        self.used += n_bytes - self._bytes.get(key, 0)
        self._bytes[key] = n_bytes


def check_disk(folder: Path) -> None:
    """Refuse a folder that could neither take a state nor give one; it is made.

    A read-only one with states is of use: an image's, say.

    Raises:
        ValueError: if nothing can be written to it and it holds no state.
    """
    try:
        check_folder(folder, "state_cache_dir")
    except ValueError:
        if not _holds_states(folder):
            raise


def _holds_states(folder: Path) -> bool:
    try:
        return any(_OURS.fullmatch(name) for name in os.listdir(folder))
    except OSError:
        return False


def checksum(content: dict[str, Any]) -> str:
    """SHA-256 of JSON-able content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
