"""What the ranks do with kept states before a step: plain, picklable data, done in order."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Save:
    """Keep a copy of `slot`'s recurrent state as `snapshot`."""

    snapshot: int
    slot: int


@dataclass(frozen=True)
class Restore:
    """Load `snapshot` into `slot`.

    Attributes:
        snapshot, slot: which state, and where to.
        pages: hybrids: pages to fill with the snapshot's own keys and values; empty where they are
            in pages that the sequence shares.
        copied: hybrids: (source, target) of a page that is partly filled and so is copied.
    """

    snapshot: int
    slot: int
    pages: tuple[int, ...] = ()
    copied: tuple[int, int] | None = None


@dataclass(frozen=True)
class Drop:
    """Forget `snapshot`."""

    snapshot: int


@dataclass(frozen=True)
class Copy:
    """Keep `source` also as `snapshot`."""

    snapshot: int
    source: int


@dataclass(frozen=True)
class ToHost:
    """Move `snapshot` to host memory, with its keys and values (hybrids), out of `pages`."""

    snapshot: int
    n_tokens: int
    pages: tuple[int, ...] = ()


@dataclass(frozen=True)
class ToDevice:
    """Move `snapshot` to the device; keys and values of its own are dropped: pages hold them."""

    snapshot: int


@dataclass(frozen=True)
class Write:
    """Write `snapshot` to disk under `key`, with its keys and values (hybrids). May fail."""

    snapshot: int
    key: str
    n_tokens: int
    pages: tuple[int, ...] = ()


@dataclass(frozen=True)
class Read:
    """Read what was written under `key` into host memory as `snapshot`. May fail."""

    snapshot: int
    key: str
    n_tokens: int


StateOp = Save | Restore | Drop | Copy | ToHost | ToDevice | Write | Read
