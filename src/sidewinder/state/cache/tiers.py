"""The tiers that hold kept states, their budgets, and what moves or goes when one is full.

A state is in one memory tier at a time (device, or host), and may be on disk besides: kept states
never change, so a copy on disk stays good. Only the ranks hold tensors; decisions here become `ops`
that all ranks carry out in the same order.
"""

from collections.abc import Iterable, Mapping

from sidewinder.state.cache.disk import DiskIndex
from sidewinder.state.cache.entry import CacheSizes, Entry, Tier
from sidewinder.state.cache.ops import Drop, Read, StateOp, ToDevice, ToHost, Write
from sidewinder.state.cache.pages import PagePool
from sidewinder.state.cache.radix import RadixTree
from sidewinder.state.cache.stats import CacheCounters

MAX_ENTRIES = 8192
"""Kept states per tier, whatever their size: the scheduler looks through them."""

MIN_MOVED_TOKENS = 64
"""States that never were resumed and save fewer tokens are dropped rather than moved down."""


class Tiers:
    """Where every entry of `tree` is.

    Args:
        sizes: budgets.
        tree: entries leave it when no tier holds them.
        pages: of the KV pool.
        counters: are advanced.
        disk: the tier behind memory, or None.
    """

    def __init__(
        self,
        sizes: CacheSizes,
        tree: RadixTree[Entry],
        pages: PagePool,
        counters: CacheCounters,
        disk: DiskIndex | None = None,
    ) -> None:
        self.sizes = sizes
        self.pages = pages
        self.disk = disk
        self.ops: list[StateOp] = []
        self.used: dict[Tier, int] = {"device": 0, "host": 0}
        self.members: dict[Tier, dict[int, Entry]] = {"device": {}, "host": {}}
        self.on_disk: dict[str, Entry] = {}
        self._tree = tree
        self._counters = counters
        self._clock = 0.0
        self._writing: list[Entry] = []
        self._loading: list[Entry] = []
        self._landed: list[Entry] = []

    def take_ops(self) -> tuple[StateOp, ...]:
        """What the ranks must do next, in this order; what was read for a request may go again."""
        for entry in self._landed:
            entry.pins -= 1
        self._landed = []
        ops, self.ops = tuple(self.ops), []
        return ops

    def touch(self, entry: Entry) -> None:
        """Note that `entry` was used now."""
        entry.clock = self._clock

    def place(self, entry: Entry, tier: Tier, pages: tuple[int, ...] = ()) -> None:
        """Count `entry` in `tier`, where there is room; `pages` get one more holder."""
        assert entry.tier is None
        own = self.sizes.state_bytes if pages else self.sizes.whole_bytes(entry.n_tokens)
        entry.tier, entry.pages, entry.n_bytes = tier, pages, own
        self.pages.share(pages)
        self.used[tier] += own
        self.members[tier][entry.id] = entry

    def make_room(self, tier: Tier, n_bytes: int) -> bool:
        """Let the least valuable entries go until `n_bytes` fit into `tier`."""
        limit, members = self.sizes.limit(tier), self.members[tier]
        if n_bytes > limit:
            return False
        while self.used[tier] + n_bytes > limit or len(members) >= MAX_ENTRIES:
            victim = self._least_valuable(members.values())
            if victim is None:
                return False
            self._evict(victim)
        return True

    def make_pages(self, n_pages: int) -> bool:
        """Let entries go until so many KV pages are free; none, if that would not be enough."""
        if n_pages <= self.pages.n_free:
            return True
        entries = [entry for entry in self.members["device"].values() if not entry.pins]
        if self.pages.n_free + self._reclaimable(entries) < n_pages:
            return False
        while self.pages.n_free < n_pages:
            victim = self._least_valuable(entry for entry in entries if entry.pages)
            assert victim is not None, "reclaimable pages have holders"
            self._evict(victim)
        return True

    def adopt(self, entry: Entry, pages: tuple[int, ...]) -> None:
        """Bring an entry that was resumed to the device; a sequence holds its text in `pages`."""
        if entry.tier == "device" and bool(entry.pages) == bool(pages):
            return
        entry.pins += 1
        if self.make_room("device", self.sizes.state_bytes):
            self.ops.append(ToDevice(entry.id))
            self._leave(entry)
            self.place(entry, "device", pages)
        entry.pins -= 1

    def load(self, entry: Entry) -> bool:
        """Ask the ranks to read an entry that is on disk only; False if memory has no room."""
        assert entry.key is not None
        n_bytes = self.sizes.whole_bytes(entry.n_tokens)
        tier: Tier = "host" if n_bytes <= self.sizes.host_bytes else "device"
        entry.pins += 1
        if entry in self._writing or not self.make_room(tier, n_bytes):
            entry.pins -= 1
            return False
        self.ops.append(Read(entry.id, entry.key, entry.n_tokens))
        self.place(entry, tier)
        entry.loading = entry.from_disk = True
        self._loading.append(entry)
        return True

    def settle(self, failed: Mapping[int, str]) -> None:
        """Take the ranks' answer to what was asked of them since the last time.

        Args:
            failed: why, by entry, for reads and writes that failed.
        """
        for entry in self._loading:
            entry.loading = False
            if entry.id in failed:
                entry.pins -= 1
                self._unread(entry, failed[entry.id])
            else:
                # Whoever asked for it resumes it in the next plan, unless it was aborted.
                self._landed.append(entry)
        for entry in self._writing:
            self._written(entry, failed.get(entry.id))
        self._loading, self._writing = [], []

    def write_all(self, n_bytes: int) -> None:
        """Write what is only in memory to disk, the most valuable first, up to `n_bytes`."""
        entries = [entry for members in self.members.values() for entry in members.values()]
        for entry in sorted(entries, key=lambda entry: -entry.value(self.sizes)):
            n_bytes -= self.sizes.whole_bytes(entry.n_tokens)
            if n_bytes >= 0 and entry.key is None:
                self._write(entry)

    def only_in_memory(self) -> list[Entry]:
        """What a restart would lose."""
        entries = [entry for members in self.members.values() for entry in members.values()]
        return [entry for entry in entries if entry.key is None]

    def make_disk_room(self, n_bytes: int) -> bool:
        """Delete what is least valuable on disk until `n_bytes` fit; strangers go first."""
        disk = self.disk
        assert disk is not None
        while not disk.has_room(n_bytes) or len(self.on_disk) >= MAX_ENTRIES:
            if disk.drop_stranger():
                continue
            busy = {id(entry) for entry in (*self._writing, *self._loading)}
            candidates = [entry for entry in self.on_disk.values() if id(entry) not in busy]
            victim = self._least_valuable(candidates)
            if victim is None:
                return False
            self._forget_on_disk(victim)
            self._forget_if_nowhere(victim)
        return True

    def forget(self, entry: Entry) -> None:
        """Take `entry` out of memory (its copy on disk, if any, stays)."""
        if entry.tier is not None:
            self.ops.append(Drop(entry.id))
            self._leave(entry)
        self._forget_if_nowhere(entry)

    def _evict(self, entry: Entry) -> None:
        self._clock = max(self._clock, entry.value(self.sizes))
        worth_moving = entry.hits > 0 or entry.marginal_tokens >= MIN_MOVED_TOKENS
        if worth_moving and entry.tier == "device" and self._move_to_host(entry):
            return
        if worth_moving and entry.key is None:
            self._write(entry)
        self._counters.evicted += 1
        self.forget(entry)

    def _move_to_host(self, entry: Entry) -> bool:
        entry.pins += 1
        has_room = self.make_room("host", self.sizes.whole_bytes(entry.n_tokens))
        entry.pins -= 1
        if has_room:
            self.ops.append(ToHost(entry.id, entry.n_tokens, entry.pages))
            self._leave(entry)
            self.place(entry, "host")
        return has_room

    def _write(self, entry: Entry) -> None:
        disk = self.disk
        if disk is None or not disk.writable:
            return
        n_bytes = disk.bytes_on_disk(self.sizes.whole_bytes(entry.n_tokens))
        if not self.make_disk_room(n_bytes):
            return
        entry.key = disk.reserve(entry.namespace, entry.node, n_bytes)
        self.on_disk[entry.key] = entry
        self.ops.append(Write(entry.id, entry.key, entry.n_tokens, entry.pages))
        self._writing.append(entry)

    def _written(self, entry: Entry, failure: str | None) -> None:
        assert self.disk is not None
        assert entry.key is not None
        if failure is None:
            failure = self.disk.commit(entry.key, entry.namespace, entry.node)
        if failure is None:
            self._counters.disk_writes += 1
            return
        self._counters.disk_errors += 1
        self.disk.unwritable(failure)
        self._forget_on_disk(entry)
        self._forget_if_nowhere(entry)

    def _unread(self, entry: Entry, failure: str) -> None:
        assert self.disk is not None
        self._counters.disk_errors += 1
        self.disk.unreadable(failure)
        self._forget_on_disk(entry)
        self._leave(entry)
        self._forget_if_nowhere(entry)

    def _least_valuable(self, entries: Iterable[Entry]) -> Entry | None:
        free = (entry for entry in entries if not entry.pins)
        return min(free, key=lambda entry: (entry.value(self.sizes), entry.id), default=None)

    def _reclaimable(self, entries: Iterable[Entry]) -> int:
        """Pages that nobody but `entries` holds."""
        held: dict[int, int] = {}
        for entry in entries:
            for page in entry.pages:
                held[page] = held.get(page, 0) + 1
        return sum(self.pages.holders(page) == count for page, count in held.items())

    def _leave(self, entry: Entry) -> None:
        assert entry.tier is not None
        self.used[entry.tier] -= entry.n_bytes
        del self.members[entry.tier][entry.id]
        self.pages.release(entry.pages)
        entry.tier, entry.pages, entry.n_bytes = None, (), 0

    def _forget_on_disk(self, entry: Entry) -> None:
        assert self.disk is not None
        assert entry.key is not None
        self.disk.delete(entry.key)
        del self.on_disk[entry.key]
        entry.key = None

    def _forget_if_nowhere(self, entry: Entry) -> None:
        if entry.tier is None and entry.key is None and entry.node.value is entry:
            self._tree.remove(entry.node)
