"""The state cache as the scheduler uses it: find a prefix's state, resume it, keep new ones."""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from sidewinder.state.cache.boundaries import boundaries
from sidewinder.state.cache.disk import DiskIndex
from sidewinder.state.cache.entry import CacheSizes, Entry
from sidewinder.state.cache.ops import Copy, Drop, Restore, Save, StateOp, ToHost
from sidewinder.state.cache.pages import PagePool
from sidewinder.state.cache.radix import RadixTree
from sidewinder.state.cache.stats import CacheCounters, CacheStats
from sidewinder.state.cache.tiers import Tiers

MIN_LOADED_TOKENS = 64
"""A state on disk must save this many tokens more than one in memory to be read."""


@dataclasses.dataclass(frozen=True)
class Match:
    """What the cache knows of a prompt.

    Attributes:
        entry: the state to resume, or None.
        n_shared: leading tokens that the tree knows; more than the entry's where no state was kept.
    """

    entry: Entry | None
    n_shared: int

    @property
    def n_tokens(self) -> int:
        """Tokens that need not be run."""
        return 0 if self.entry is None else self.entry.n_tokens


@dataclasses.dataclass(frozen=True)
class Kept:
    """A state that a caller keeps: outside of the tree, held until `release`."""

    id: int
    n_tokens: int


class StateCache:
    """Kept states of prefixes, and what the ranks must do about them.

    Args:
        sizes: budgets; with a `device_bytes` below one state nothing is kept.
        n_pages: hybrids: KV pages, which sequences and kept states share.
        disk: the tier behind memory, or None.
    """

    def __init__(
        self, sizes: CacheSizes | None = None, n_pages: int = 0, disk: DiskIndex | None = None
    ) -> None:
        self.sizes = sizes or CacheSizes()
        self.pages = PagePool(n_pages)
        self.counters = CacheCounters()
        self._tree: RadixTree[Entry] = RadixTree()
        self._tiers = Tiers(self.sizes, self._tree, self.pages, self.counters, disk)
        self._disk = disk
        self._ids = itertools.count()
        self._held: dict[int, Kept] = {}
        self._awaited = Counter[int]()  # by waiting requests: how many resume a held state
        if disk is not None:
            self._take_over(disk)

    @property
    def enabled(self) -> bool:
        """Whether anything can be kept."""
        return self.sizes.device_bytes >= self.sizes.state_bytes

    def match(self, namespace: str, prompt: Sequence[int], in_memory: bool = False) -> Match:
        """The longest kept state that `prompt` can resume: its last token always runs.

        The entry may be on disk only, or on its way into memory (see `ready`), unless `in_memory`.
        """
        if not self.enabled:
            return Match(None, 0)
        nodes, n_shared = self._tree.match(namespace, prompt)
        found = [node.value for node in nodes if node.value and node.depth < len(prompt)]
        near = next((entry for entry in reversed(found) if entry.is_ready), None)
        if in_memory or not found:
            return Match(near, n_shared)
        gain = found[-1].n_tokens - (near.n_tokens if near else 0)
        return Match(found[-1] if gain >= MIN_LOADED_TOKENS else near, n_shared)

    def ready(self, entry: Entry) -> bool:
        """Whether `entry` can be resumed now; if not, memory is asked to load it.

        Afterwards `entry.loading` says whether it comes with the next step.
        """
        if entry.tier is None:
            self._tiers.load(entry)
        return entry.is_ready

    def boundaries(self, match: Match, length: int) -> set[int]:
        """After which tokens of a prompt of `length` tokens its state should be kept."""
        if not self.enabled:
            return set()
        return boundaries(match.n_tokens, length, self.sizes.interval, match.n_shared)

    def take_pages(self, entry: Entry | None, n_pages: int) -> tuple[int, ...] | None:
        """Pages for a sequence that resumes `entry`; None if they are not free. Whole pages of the
        entry are shared, the others are new."""
        shared: tuple[int, ...] = ()
        if entry is not None and entry.pages:
            shared = entry.pages[: entry.n_tokens // self.sizes.page_size]
        if entry is not None:
            entry.pins += 1
        has_room = self._tiers.make_pages(n_pages - len(shared))
        if entry is not None:
            entry.pins -= 1
        if not has_room:
            return None
        self.pages.share(shared)
        return shared + self.pages.take(n_pages - len(shared))

    def resume(self, entry: Entry, slot: int, pages: tuple[int, ...]) -> None:
        """Load `entry` into `slot`; `pages` are the sequence's, from `take_pages`."""
        assert entry.tier is not None
        assert not entry.loading
        self._tiers.ops.append(self._restore(entry, slot, pages))
        self._count_hit(entry)
        entry.hits += 1
        self._tiers.touch(entry)
        if self._disk is not None and entry.key is not None:
            self._disk.used_now(entry.key)
        self._tiers.adopt(entry, self._covering(pages, entry.n_tokens))

    def count_query(self, n_prompt: int, n_cached: int) -> None:
        """Note that a request looked for its prompt and got `n_cached` tokens of it."""
        self.counters.queries += 1
        self.counters.query_tokens += n_prompt
        self.counters.hits += n_cached > 0
        self.counters.cached_tokens += n_cached

    def save(
        self, namespace: str, tokens: Sequence[int], slot: int, pages: tuple[int, ...]
    ) -> None:
        """Keep the state of `tokens`, which `slot` holds before the next step.

        Args:
            namespace: of the request's salt.
            tokens: all that ran in the slot.
            slot: where the state is.
            pages: hybrids: the sequence's KV pages.
        """
        if not self.enabled:
            return
        node = self._tree.insert(namespace, tokens)
        entry = node.value
        if entry is None:
            entry = node.value = Entry(next(self._ids), namespace, node)
        self._tiers.touch(entry)
        if entry.tier is not None:
            return
        entry.pins += 1
        has_room = self._tiers.make_room("device", self.sizes.state_bytes)
        entry.pins -= 1
        if has_room:
            self._tiers.ops.append(Save(entry.id, slot))
            self._tiers.place(entry, "device", self._covering(pages, len(tokens)))
            self.counters.saved += 1
        elif entry.key is None:
            self._tree.remove(node)

    def keep_slot(self, slot: int, n_tokens: int, pages: tuple[int, ...]) -> Kept:
        """Keep `slot`'s state for a caller, with its keys and values."""
        kept = self._new_kept(n_tokens)
        covering = self._covering(pages, n_tokens)
        self._tiers.ops += [Save(kept.id, slot), ToHost(kept.id, n_tokens, covering)]
        return kept

    def keep_known(self, namespace: str, tokens: Sequence[int]) -> Kept | None:
        """Keep the state of `tokens` for a caller, if the cache has just that in memory."""
        nodes, _ = self._tree.match(namespace, tokens)
        entry = nodes[-1].value if nodes and nodes[-1].depth == len(tokens) else None
        if entry is None or entry.tier is None or entry.loading:
            return None
        kept = self._new_kept(len(tokens))
        self._tiers.ops += [
            Copy(kept.id, entry.id),
            ToHost(kept.id, kept.n_tokens, self._covering(entry.pages, kept.n_tokens)),
        ]
        return kept

    def await_kept(self, kept: Kept) -> None:
        """A request waits that will resume a caller's state: it stays until `forgo_kept`, even if
        the caller releases it meanwhile.

        Raises:
            ValueError: if there is none, as `release` says.
        """
        self._check_held(kept)
        self._awaited[kept.id] += 1

    def forgo_kept(self, kept: Kept) -> None:
        """A request that waited for a caller's state has resumed it, or does not want it."""
        self._awaited[kept.id] -= 1
        self._drop_unwanted(kept)

    def resume_kept(self, kept: Kept, slot: int, pages: tuple[int, ...]) -> None:
        """Load a caller's state, which was awaited, into `slot`; `pages` are all new."""
        covering = self._covering(pages, kept.n_tokens)
        self._tiers.ops.append(Restore(kept.id, slot, covering))
        self.forgo_kept(kept)

    def release(self, kept: Kept) -> None:
        """Forget a caller's state.

        Raises:
            ValueError: for one that was released, or that another cache made.
        """
        self._check_held(kept)
        del self._held[kept.id]
        self._drop_unwanted(kept)

    def _drop_unwanted(self, kept: Kept) -> None:
        if kept.id not in self._held and not self._awaited[kept.id]:
            self._tiers.ops.append(Drop(kept.id))
        self._awaited += Counter()  # Forgets those at zero.

    def _check_held(self, kept: Kept) -> None:
        if self._held.get(kept.id) is not kept:
            raise ValueError(
                f"this state of {kept.n_tokens} tokens was released, or is another LLM's; make it "
                "again with snapshot"
            )

    def take_ops(self) -> tuple[StateOp, ...]:
        """What the ranks must do before the next step, in this order; the caller sends it."""
        return self._tiers.take_ops()

    def settle(self, failed: Mapping[int, str]) -> None:
        """Take the ranks' answer to the operations that were taken last."""
        self._tiers.settle(failed)

    def write_all(self, n_bytes: int) -> None:
        """Write what is only in memory to disk, up to `n_bytes`, the most valuable first, at the
        end of the process; `report_unwritten` follows."""
        if self._disk is not None:
            self._disk.close()
            self._tiers.write_all(n_bytes)

    def report_unwritten(self) -> None:
        """Say what a disk that takes no more has cost, once `write_all` is settled."""
        if self._disk is not None:
            self._disk.unwritten(len(self._tiers.only_in_memory()))

    def stats(self) -> CacheStats:
        """Figures of this moment."""
        tiers, disk, sizes = self._tiers, self._disk, self.sizes
        return CacheStats(
            **vars(self.counters),
            snapshots_device=len(tiers.members["device"]),
            snapshots_host=len(tiers.members["host"]),
            snapshots_disk=len(tiers.on_disk),
            device_bytes=tiers.used["device"],
            host_bytes=tiers.used["host"],
            disk_bytes=disk.used if disk else 0,
            device_bytes_limit=sizes.device_bytes if self.enabled else 0,
            host_bytes_limit=sizes.host_bytes,
            disk_bytes_limit=disk.limit if disk else 0,
            kv_pages_used=self.pages.n_pages - self.pages.n_free,
        )

    def _new_kept(self, n_tokens: int) -> Kept:
        kept = Kept(next(self._ids), n_tokens)
        self._held[kept.id] = kept
        return kept

    def _take_over(self, disk: DiskIndex) -> None:
        """What earlier runs left on disk."""
        for found in disk.found:
            node = self._tree.insert(found.namespace, found.tokens)
            node.value = Entry(next(self._ids), found.namespace, node, key=found.key)
            self._tiers.on_disk[found.key] = node.value
        self._tiers.make_disk_room(0)

    def _restore(self, entry: Entry, slot: int, pages: tuple[int, ...]) -> Restore:
        if not pages:
            return Restore(entry.id, slot)
        if not entry.pages:
            return Restore(entry.id, slot, self._covering(pages, entry.n_tokens))
        n_whole, rest = divmod(entry.n_tokens, self.sizes.page_size)
        copied = (entry.pages[n_whole], pages[n_whole]) if rest else None
        return Restore(entry.id, slot, copied=copied)

    def _covering(self, pages: tuple[int, ...], n_tokens: int) -> tuple[int, ...]:
        """The pages that hold the first `n_tokens` tokens."""
        return pages[: -(-n_tokens // self.sizes.page_size)] if pages else ()

    def _count_hit(self, entry: Entry) -> None:
        if entry.from_disk:
            self.counters.hits_disk += 1
        elif entry.tier == "host":
            self.counters.hits_host += 1
        else:
            self.counters.hits_device += 1
        entry.from_disk = False


def namespace_of(cache_salt: str | None) -> str:
    """Where states of requests with this salt are kept; on disk it stands in for the salt."""
    if cache_salt is None:
        return ""
    return hashlib.sha256(b"salt:" + cache_salt.encode()).hexdigest()[:32]
