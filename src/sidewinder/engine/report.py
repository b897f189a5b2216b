"""What a runner tells its caller once it stands."""

from dataclasses import dataclass
from typing import Any

from sidewinder.engine.memory import PoolSize
from sidewinder.state.cache.entry import CacheSizes


@dataclass(frozen=True)
class RunnerReport:
    """What the ranks hold and how they talk; the same on every rank, but for `waited_s`.

    Attributes:
        pool: slots and KV pages of every rank.
        cache: budgets of kept states.
        device, dtype: where and in what the model computes ("cpu", "bfloat16").
        weight_bytes: of every rank.
        slot_bytes: of one sequence's state, on every rank.
        page_bytes: of one KV page, on every rank.
        collectives: the path that messages take.
        collectives_per_step: collectives of the last step that only decoded; None before one.
        waited_s: seconds that this rank has waited for messages; 0 where the transport does not
            count them (only TCP does).
        looks_ahead: steps can be started before the tokens of those before them are known.
    """

    pool: PoolSize
    cache: CacheSizes
    device: str
    dtype: str
    weight_bytes: tuple[int, ...]
    slot_bytes: tuple[int, ...]
    page_bytes: tuple[int, ...]
    collectives: str
    collectives_per_step: int | None = None
    waited_s: float = 0.0
    looks_ahead: bool = False

    def summary(self) -> dict[str, Any]:
        """What `LLM.report` gives; bytes are those of the largest rank."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "tp": len(self.weight_bytes),
            "weight_bytes_per_rank": max(self.weight_bytes),
            "state_bytes_per_sequence": max(self.slot_bytes),
            "state_slots": self.pool.n_slots,
            "kv_cache_tokens": self.pool.n_pages * self.pool.page_size,
            "kv_cache_bytes": self.pool.n_pages * max(self.page_bytes),
            "collectives": self.collectives,
            "collectives_per_token": self.collectives_per_step,
            "collectives_wait_s": self.waited_s,
        }
