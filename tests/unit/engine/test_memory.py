"""Sizes of the state pool from memory and wishes."""

import pytest
import torch

from sidewinder.collectives.base import SingleRank
from sidewinder.config import EngineConfig
from sidewinder.engine import memory
from sidewinder.engine.memory import (
    DEFAULT_LENGTH,
    PAGE_SIZE,
    PoolSize,
    fit_cache,
    fit_pool,
    free_bytes,
    gather_integer,
    least_free_bytes,
)
from sidewinder.testing import run_ranks

MIB = 2**20


def fit(free, slot_bytes=MIB, page_bytes=0, **options):
    return fit_pool(EngineConfig("model", **options), slot_bytes, page_bytes, free)


def test_the_wish_is_met_where_memory_allows():
    size = fit(1000 * MIB, max_batch_size=8)
    assert (size.n_slots, size.n_pages, size.page_size) == (8, 0, 0)


def test_slots_are_clamped_to_memory():
    assert fit(10 * MIB, max_batch_size=64).n_slots == 8


def test_no_slot_fits():
    with pytest.raises(ValueError, match=r"takes 1\.0 MiB per rank and 0\.8 MiB are left"):
        fit(MIB)


def test_pages_for_the_longest_texts():
    size = fit(10_000 * MIB, page_bytes=1024, max_batch_size=4, max_model_len=100)
    assert (size.n_slots, size.n_pages, size.page_size) == (4, 4 * 7, PAGE_SIZE)
    size = fit(10_000 * MIB, page_bytes=1024, max_batch_size=4)
    assert size.n_pages * PAGE_SIZE == 4 * DEFAULT_LENGTH


def test_pages_leave_memory_for_slots():
    size = fit(100 * MIB, page_bytes=MIB, max_batch_size=64)
    assert (size.n_slots, size.n_pages) == (20, 60)


def test_pages_as_asked_for():
    assert fit(100 * MIB, page_bytes=MIB, kv_cache_tokens=100).n_pages == 7
    with pytest.raises(ValueError, match=r"kv_cache_tokens=2000 .* use at most 1280"):
        fit(100 * MIB, page_bytes=MIB, kv_cache_tokens=2000)


def test_free_memory_is_plausible():
    assert 2**24 < free_bytes(torch.device("cpu")) < 2**50


def test_what_torch_keeps_of_freed_memory_counts_as_free(monkeypatch):
    """Weights are rounded on the GPU: those that they were made from are gone by then."""
    kept = [3]
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 - sum(kept), 24))
    assert free_bytes(torch.device("cuda")) == 10


def test_a_cgroups_cached_files_are_free(tmp_path):
    """Files that were read count as used: a checkpoint's, on the second start in a container."""
    assert memory._available_of_cgroup(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    assert memory._available_of_cgroup(tmp_path) == 100
    (tmp_path / "memory.stat").write_text("anon 200\nactive_file 300\ninactive_file 350\n")
    assert memory._available_of_cgroup(tmp_path) == 750
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._available_of_cgroup(tmp_path) is None


def test_ranks_agree_on_the_least_memory():
    alone = least_free_bytes(torch.device("cpu"), SingleRank())
    answers = run_ranks(3, lambda _, ranks: least_free_bytes(torch.device("cpu"), ranks))
    assert len(set(answers)) == 1
    assert answers[0] < alone / 2


def test_integers_are_gathered_whole():
    values = run_ranks(
        3, lambda tp, ranks: gather_integer(2**62 + tp.rank, torch.device("cpu"), ranks)
    )
    assert values == [[2**62, 2**62 + 1, 2**62 + 2]] * 3


def cache(free=1000 << 20, host=0, **options):
    engine = EngineConfig("m", **{"device": "cpu"} | options)
    return fit_cache(engine, PoolSize(4, 10, 16), 10, 160, free, host)


def test_the_cache_takes_a_quarter_of_what_is_left():
    found = cache()
    assert found.device_bytes == 250 << 20
    assert (found.host_bytes, found.state_bytes, found.token_bytes) == (0, 10, 10)
    assert (found.interval, found.page_size) == (512, 16)
    assert cache(free=-5).device_bytes == 0
    assert cache(free=1 << 40, tp=2).device_bytes == 2 << 30, "4 GiB for all ranks of a CPU"
    assert cache(free=1 << 40, host=400, device="cuda").host_bytes == 100


def test_the_cache_takes_what_it_is_told():
    assert cache(state_cache_bytes=77, state_cache_host_bytes=5).device_bytes == 77
    assert cache(state_cache_host_bytes=5).host_bytes == 5
    assert cache(state_cache_bytes=0).device_bytes == 0
    with pytest.raises(ValueError, match="state_cache_bytes=2000 is more than"):
        cache(free=1000, state_cache_bytes=2000)
