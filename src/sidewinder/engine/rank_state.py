"""One rank's state: the pool, as large as memory allows, and budgets of kept states beside it."""

from dataclasses import dataclass

from sidewinder.collectives.base import Collectives
from sidewinder.config import EngineConfig
from sidewinder.engine.memory import (
    PoolSize,
    fit_cache,
    fit_pool,
    gather_integer,
    host_free_bytes,
    least_free_bytes,
)
from sidewinder.models.base import Model
from sidewinder.parallel.devices import DTYPES, torch_device
from sidewinder.quantise import SLICE_BYTES
from sidewinder.state.cache.entry import CacheSizes
from sidewinder.state.cache.formats import stored_bytes
from sidewinder.state.pool import StatePool
from sidewinder.state.spec import StateSpec


@dataclass(frozen=True)
class RankState:
    """Where a rank keeps state, and how much every rank can keep.

    Attributes:
        pool: this rank's, with what is spare.
        size: what the scheduler may give away of it.
        cache: budgets of kept states.
        slot_bytes: of one sequence's state, on every rank.
        page_bytes: of one KV page, on every rank.
    """

    pool: StatePool
    size: PoolSize
    cache: CacheSizes
    slot_bytes: tuple[int, ...]
    page_bytes: tuple[int, ...]


def open_state(
    engine: EngineConfig, model: Model, collectives: Collectives, n_spare: int
) -> RankState:
    """Allocate this rank's pool; every rank calls at the same time.

    Args:
        engine: dtypes, and what is wished for.
        model: this rank's part, loaded: what is free beside it can be used.
        collectives: the ranks', which agree on sizes.
        n_spare: slots, and pages, that the scheduler does not know.

    Raises:
        ValueError: if memory is too small.
    """
    device = torch_device(engine.device)
    dtype, state_dtype = DTYPES[engine.dtype], DTYPES[engine.state_dtype]

    def of_all_ranks(value: int) -> tuple[int, ...]:
        return tuple(gather_integer(value, device, collectives))

    spec = StateSpec.of(model.config, model.dims)
    slot_bytes = of_all_ranks(spec.slot_bytes(dtype, state_dtype))
    page_bytes = of_all_ranks(spec.page_bytes(dtype))
    free = least_free_bytes(device, collectives)
    if engine.weight_dtype != "auto" and device.type != "cpu":
        free = max(0, free - SLICE_BYTES)  # Products of many rows widen a slice of a matrix.
    size = fit_pool(engine, max(slot_bytes), max(page_bytes), free)
    pool = StatePool(
        model.config, model.dims, size.all_slots + n_spare, dtype, device,
        n_pages=size.n_pages + n_spare, state_dtype=state_dtype,
    )  # fmt: skip
    cache = fit_cache(
        engine,
        size,
        state_bytes=max(of_all_ranks(stored_bytes(pool.meta_snapshot(), engine.state_cache_dtype))),
        page_bytes=max(page_bytes),
        free_bytes=free - size.all_slots * max(slot_bytes) - size.n_pages * max(page_bytes),
        host_bytes=host_free_bytes(device, collectives),
    )
    return RankState(pool, size, cache, slot_bytes, page_bytes)
