"""What is checked before ranks start, and what the scheduler may give away once they report."""

import warnings
from dataclasses import replace
from pathlib import Path

from sidewinder.config import EngineConfig, ModelConfig
from sidewinder.engine.limits import Limits
from sidewinder.engine.report import RunnerReport
from sidewinder.engine.runner import LOGITS_PER_BLOCK
from sidewinder.parallel.executor import Executor
from sidewinder.state.cache.cache import StateCache
from sidewinder.state.cache.disk import DiskIndex, check_disk
from sidewinder.state.cache.fingerprint import fingerprint
from sidewinder.tokenizer import Tokenizer


def check_early(engine: EngineConfig) -> Tokenizer | None:
    """See what can fail before weights are fetched and loaded.

    Returns:
        The tokenizer that `engine` names, loaded. The model's own, which may be missing, is not
        looked at.

    Raises:
        ValueError: if that tokenizer, or the folder for states, cannot be used.
    """
    if engine.state_cache_dir is not None:
        if engine.state_cache_bytes == 0:
            raise ValueError(
                f"state_cache_dir={engine.state_cache_dir!r} gets no state with "
                "state_cache_bytes=0; leave one of them out"
            )
        check_disk(_disk_folder(engine.state_cache_dir))
    if engine.tokenizer is None:
        return None
    tokenizer = Tokenizer(engine.tokenizer)
    tokenizer.load()
    return tokenizer


def limits_of(engine: EngineConfig, model: ModelConfig, report: RunnerReport) -> Limits:
    """The scheduler's limits; warns if memory holds fewer sequences than were asked for."""
    if report.pool.n_slots < engine.max_batch_size:
        warnings.warn(
            f"memory holds {report.pool.n_slots} sequences at once, not max_batch_size="
            f"{engine.max_batch_size}; the others wait",
            stacklevel=3,
        )
    return Limits(
        n_slots=report.pool.n_slots,
        max_step_tokens=engine.max_step_tokens,
        max_logit_rows=max(1, LOGITS_PER_BLOCK // model.vocab_size),
        n_pages=report.pool.n_pages,
        page_size=report.pool.page_size,
        n_draft_slots=report.pool.n_draft_slots,
        max_drafts=engine.speculate,
        # Graphs of steps with prompts have no drafts, and without a graph such a step takes longer
        # than drafts could save.
        drafts_beside_prompts=not report.looks_ahead,
    )


def open_state_cache(
    engine: EngineConfig, model: ModelConfig, report: RunnerReport, executor: Executor
) -> StateCache:
    """The state cache, with its disk tier where one is asked for; warns if it can hold nothing."""
    sizes = report.cache
    if engine.state_cache_bytes != 0 and sizes.device_bytes < sizes.state_bytes:
        warnings.warn(
            f"no prefix can be reused: one state takes {sizes.state_bytes} bytes per rank and "
            f"state_cache_bytes is {sizes.device_bytes}; raise it, or set 0 to turn reuse off",
            stacklevel=3,
        )
    disk = None
    if engine.state_cache_dir is not None and sizes.device_bytes >= sizes.state_bytes:
        own = fingerprint(replace(engine, dtype=report.dtype), model)
        folder = _disk_folder(engine.state_cache_dir)
        disk = DiskIndex(folder, engine.state_cache_disk_bytes, own, engine.tp)
        executor.call("open_disk", str(folder), own)
    return StateCache(sizes, report.pool.n_pages, disk)


def _disk_folder(state_cache_dir: str) -> Path:
    return Path(state_cache_dir).expanduser().absolute()
