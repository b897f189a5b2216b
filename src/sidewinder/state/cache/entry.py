"""A kept state as the scheduler knows it: where it is, and what it is worth."""

from dataclasses import dataclass
from typing import Literal

from sidewinder.state.cache.radix import Node

Tier = Literal["device", "host"]


@dataclass(frozen=True)
class CacheSizes:
    """How much may be kept; bytes are those of the largest rank.

    Attributes:
        device_bytes, host_bytes: budgets of the two tiers in memory; 0 turns one off.
        state_bytes: of one kept state.
        token_bytes: hybrids: of one token's keys and values; else 0.
        interval: spacing of the grid of states along a prompt, at its beginning.
        page_size: hybrids: tokens per KV page; else 0.
    """

    device_bytes: int = 0
    host_bytes: int = 0
    state_bytes: int = 1
    token_bytes: int = 0
    interval: int = 512
    page_size: int = 0

    def whole_bytes(self, n_tokens: int) -> int:
        """Of a state that holds its keys and values itself."""
        return self.state_bytes + n_tokens * self.token_bytes

    def limit(self, tier: Tier) -> int:
        """The budget of a tier."""
        return self.device_bytes if tier == "device" else self.host_bytes


@dataclass(eq=False)
class Entry:
    """A kept state.

    Attributes:
        id: what the ranks call it.
        namespace: of its `cache_salt`.
        node: the end of its prefix in the tree.
        tier: in which memory it is; None: on disk only.
        n_bytes: what it counts for in that tier.
        pages: hybrids, device tier: pages that hold its keys and values, shared with sequences;
            empty if it holds them itself.
        key: its name on disk, or None.
        loading: the ranks were asked to read it and have not answered.
        from_disk: it was read, and not resumed since.
        pins: holders that must not lose it.
        hits: how often it was resumed.
        clock: the cache's clock when it was last saved or resumed.
    """

    id: int
    namespace: str
    node: "Node[Entry]"
    tier: Tier | None = None
    n_bytes: int = 0
    pages: tuple[int, ...] = ()
    key: str | None = None
    loading: bool = False
    from_disk: bool = False
    pins: int = 0
    hits: int = 0
    clock: float = 0.0

    @property
    def n_tokens(self) -> int:
        """Tokens in the state."""
        return self.node.depth

    @property
    def is_ready(self) -> bool:
        """Whether it is in memory on the ranks."""
        return self.tier is not None and not self.loading

    @property
    def marginal_tokens(self) -> int:
        """Tokens that would be run again without it: those after the nearest kept state above."""
        above = next((node for node in self.node.ancestors() if node.value is not None), None)
        return self.node.depth - (above.depth if above is not None else 0)

    def value(self, sizes: CacheSizes) -> float:
        """What keeping it is worth: tokens saved per byte, times uses, on top of its clock.

        This is Greedy-Dual-Size-Frequency (Cherkasova 1998): the clock rises to the value of what
        was evicted last, so that entries that are not used grow old.
        """
        saved = self.marginal_tokens
        return self.clock + (1 + self.hits) * saved / sizes.whole_bytes(saved)
