from dataclasses import replace

import pytest
import torch

from sidewinder.config import load_model_config
from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.state.spec import StateSpec
from sidewinder.testing import TINY, save_tiny


@pytest.fixture(scope="module", params=sorted(TINY))
def config(request, tmp_path_factory):
    return load_model_config(save_tiny(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    return load_model_config(save_tiny("zamba", tmp_path_factory.mktemp("hybrid")))


def make_pool(config, tp=1, rank=0, poison=True, **options):
    dims = LocalDims.of(config, TensorParallel(rank, tp))
    return StatePool(
        config, dims, 3, torch.float32, n_pages=5, page_size=4, poison=poison, **options
    )


@pytest.mark.parametrize("tp", [1, 2, 3])
def test_bytes_are_those_of_the_storage(config, tp):
    for rank in range(tp):
        pool = make_pool(config, tp, rank, state_dtype=torch.bfloat16)
        spec = StateSpec.of(config, LocalDims.of(config, TensorParallel(rank, tp)))
        stored = pool.conv.nbytes + pool.ssm.nbytes
        assert stored == 3 * spec.slot_bytes(torch.float32, torch.bfloat16)
        paged = 0 if pool.kv is None else pool.kv.k.nbytes + pool.kv.v.nbytes
        assert paged == 5 * spec.page_bytes(torch.float32, page_size=4)


def test_layers_are_views_of_the_pool(config):
    pool = make_pool(config)
    pool.layer(1).conv[2] = 7.0
    pool.layer(1).ssm[2] = 8.0
    assert (pool.conv[1, 2] == 7).all()
    assert (pool.ssm[1, 2] == 8).all()
    assert pool.conv[0].isnan().all()


def test_snapshot_restore_and_poison_touch_one_slot(config):
    pool = make_pool(config)
    slot, other = 1, 0
    pool.ssm[:, slot] = torch.randn_like(pool.ssm[:, slot])
    pool.conv[:, slot] = torch.randn_like(pool.conv[:, slot])
    snapshot = pool.snapshot(slot)
    assert snapshot.n_bytes == pool.spec.slot_bytes(torch.float32, torch.float32)
    pool.restore(other, snapshot)
    pool.poison_entered(slot, 1, [])
    assert torch.equal(pool.ssm[:, slot], snapshot.ssm), "it goes on with its state"
    pool.poison_entered(slot, 0, [])
    assert pool.ssm[:, slot].isnan().all()
    assert pool.conv[:, slot].isnan().all()
    assert torch.equal(pool.ssm[:, other], snapshot.ssm), "copies are the slot's own"
    assert torch.equal(pool.conv[:, other], snapshot.conv)
    assert pool.ssm[:, 2].isnan().all()


def test_poison_can_come_from_the_environment(config, monkeypatch):
    monkeypatch.setenv("SIDEWINDER_POISON", "1")
    assert make_pool(config, poison=None).ssm.isnan().all()
    monkeypatch.delenv("SIDEWINDER_POISON")
    assert not make_pool(config, poison=None).poison


def test_a_pool_without_slots_or_a_hybrid_without_pages_is_refused(hybrid):
    dims = LocalDims.of(hybrid, TensorParallel())
    with pytest.raises(ValueError, match="0 slots"):
        StatePool(hybrid, dims, 0, torch.float32)
    with pytest.raises(ValueError, match="KV pages"):
        StatePool(hybrid, dims, 1, torch.float32)


def test_pages_hold_what_was_written_at_their_positions(hybrid):
    pool = make_pool(hybrid)
    kv, first, second = pool.kv, [0, 1], [2]
    tables = [first[::-1], second]
    heads = kv.k.shape[3:]
    k, v = torch.randn(6, *heads), torch.randn(6, *heads)
    index = kv.index(pack([[1], [2] * 2], [0, 1], [4, 0], tables))
    assert index.write.tolist() == [first[0] * 4, second[0] * 4, second[0] * 4 + 1]
    kv.write(1, kv.index(pack([[1] * 5], [0], [0], tables[:1])), k[:5], v[:5])
    kv.write(1, kv.index(pack([[1]], [1], [0], tables[1:])), k[5:], v[5:])
    read_k, read_v = (stored[index.read[0]] for stored in kv.of(1))
    assert torch.equal(read_k, k[:5])
    assert torch.equal(read_v, v[:5])
    assert kv.k[0].isnan().all(), "another invocation was written"
    assert not kv.k[1, second[0]].isnan().all()
    pool.poison_entered(1, 4, [0, 2])
    assert kv.k[:, second[0]].isnan().all()
    assert torch.equal(kv.gather(tables[0], 5)[0][1], k[:5]), "pages that a sequence filled stay"


def test_a_page_table_must_cover_the_sequence(hybrid):
    kv = make_pool(hybrid).kv
    with pytest.raises(AssertionError, match="too few pages"):
        kv.index(pack([[1] * 5], [0], [0], [[0]]))


def test_published_sizes_agree_with_the_books(tmp_path):
    """mamba-2.8b's state is 25 MB per sequence in float32, 64·5120·(16+3)·4 bytes."""
    tiny = load_model_config(save_tiny("mamba", tmp_path))
    big = replace(tiny, d_model=2560, n_layers=64, d_inner=5120, d_state=16, d_conv=4, dt_rank=160)
    spec = StateSpec.of(big, LocalDims.of(big, TensorParallel()))
    assert spec.slot_bytes(torch.float32, torch.float32) == 64 * 5120 * 19 * 4
