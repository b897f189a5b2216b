"""Collectives over sockets: ranks are threads, joined by pairs of local sockets."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sidewinder.collectives import tcp
from sidewinder.collectives.distributed import c10d
from sidewinder.collectives.quantised.all_reduce import QuantisedCollectives
from sidewinder.collectives.quantised.policy import policy_of
from sidewinder.collectives.rank_order import sum_in_rank_order
from sidewinder.collectives.shared_memory import native
from sidewinder.collectives.tcp import Links, TcpCollectives
from sidewinder.parallel.errors import RankFailure
from sidewinder.parallel.group import TensorParallel
from sidewinder.parallel.mesh import address_towards, connect_mesh
from sidewinder.testing import run_ranks

pytestmark = pytest.mark.skipif(native is None, reason="native module not built")

SITE = "layers.0.mixer.out_proj"


def make_mesh(size):
    mesh = [[None] * size for _ in range(size)]
    for a in range(size):
        for b in range(a):
            mesh[a][b], mesh[b][a] = socket.socketpair()
    return mesh


def make_groups(size, timeout_s=60.0, bulk=False):
    mesh, second = make_mesh(size), make_mesh(size) if bulk else [None] * size
    ranks = [TensorParallel(rank, size) for rank in range(size)]
    links = [Links(tp, mesh[tp.rank], timeout_s, bulk=second[tp.rank]) for tp in ranks]
    return [TcpCollectives(tp, links[tp.rank]) for tp in ranks]


def on_ranks(size, function):
    groups = make_groups(size)
    try:
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(function, groups))
    finally:
        for group in groups:
            group.close()


def random_parts(size, *shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(size, *shape, generator=generator) * 3).to(dtype)


@pytest.mark.parametrize("one_shot_bytes", [0, 1 << 30], ids=["two-shot", "one-shot"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32], ids=str)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_sums_are_in_rank_order(monkeypatch, size, dtype, one_shot_bytes):
    monkeypatch.setattr(tcp, "ONE_SHOT_BYTES", one_shot_bytes)
    monkeypatch.setattr(tcp, "PIECE_BYTES", 4096)
    counts = (0, 1, 2, 5, 64 * size + 1, 2049, 20_000)
    parts = [random_parts(size, count, dtype=dtype, seed=count) for count in counts]

    def rank(c):
        return [c.all_reduce(part[c.tp.rank].clone()) for part in parts]

    for results in on_ranks(size, rank):
        for part, result in zip(parts, results, strict=True):
            assert torch.equal(result, sum_in_rank_order(part))


@pytest.mark.parametrize("size", [2, 3])
def test_other_verbs(size):
    parts = random_parts(size, 3, 10)

    def rank(c):
        mine = parts[c.tp.rank]
        widths = [r + 1 for r in range(size)]
        gathered = c.all_gather(mine[:, : c.tp.rank + 1], widths)
        expected = torch.cat([parts[r, :, : r + 1] for r in range(size)], dim=1)
        assert torch.equal(gathered, expected)
        rows = c.all_to_all(torch.full((size, 7), c.tp.rank) * 10 + torch.arange(size)[:, None])
        assert rows[:, 0].tolist() == [10 * r + c.tp.rank for r in range(size)]
        assert torch.equal(c.broadcast(mine.clone(), size - 1), parts[-1])
        c.barrier()
        pair = c.subgroup([[0, size - 1], *([r] for r in range(1, size - 1))])
        assert pair.tp.size == (2 if c.tp.rank in (0, size - 1) else 1)
        total = pair.all_reduce(mine.clone())
        pair.close()
        assert torch.equal(total, mine if pair.tp.size == 1 else parts[0] + parts[-1])
        return c.all_reduce(mine.clone())

    for result in on_ranks(size, rank):
        assert torch.equal(result, sum_in_rank_order(parts))


@pytest.mark.parametrize("size", [2, 3])
def test_many_may_be_on_their_way(size):
    sums = [random_parts(size, n, dtype=torch.bfloat16, seed=n) for n in (5, 700_000, 30, 90_000)]

    def rank(c):
        started = [c.start_all_reduce(part[c.tp.rank].clone()) for part in sums]
        gathered = c.start_all_gather(torch.tensor([[c.tp.rank]]), [1] * size)
        between = c.all_reduce(torch.ones(3))
        results = [pending.wait() for pending in started]
        assert between.tolist() == [size] * 3
        assert gathered.wait().tolist() == [list(range(size))]
        return results

    for results in on_ranks(size, rank):
        for part, result in zip(sums, results, strict=True):
            assert torch.equal(result, sum_in_rank_order(part))


def test_what_was_started_arrives_while_nobody_waits():
    parts = random_parts(2, 3_000_000)
    meet = threading.Barrier(2)

    def rank(c):
        mine = parts[c.tp.rank].clone()
        pending = c.start_all_reduce(mine)
        meet.wait()
        for _ in range(600):
            if c.bytes_sent == mine.nbytes:
                break
            threading.Event().wait(0.05)
        assert c.bytes_sent == mine.nbytes
        meet.wait()
        return pending.wait()

    for result in on_ranks(2, rank):
        assert torch.equal(result, sum_in_rank_order(parts))


@pytest.mark.parametrize("name", ["exact", "int4"])
def test_an_advanced_sum_sends_everything_before_it_is_waited_for(monkeypatch, name):
    monkeypatch.setattr(tcp, "ONE_SHOT_BYTES", 0)
    parts = random_parts(3, 39, 512)
    meet = threading.Barrier(3)

    def rank(c):
        policy = policy_of(name)
        pending = QuantisedCollectives(c, policy).start_all_reduce_delta(
            parts[c.tp.rank].clone(), SITE, 0
        )
        first = c.bytes_sent
        pending.advance()
        both = c.bytes_sent
        pending.advance()
        assert c.bytes_sent == both, "the second exchange begins once"
        meet.wait()
        result = pending.wait()
        return first, both, c.bytes_sent, result

    found = on_ranks(3, rank)
    expected = run_ranks(3, lambda tp, c: QuantisedCollectives(c, policy_of(name))
                         .all_reduce_delta(parts[tp.rank].clone(), SITE, 0))  # fmt: skip
    for first, both, last, result in found:
        assert 0 < first < both == last == 2 * first
        assert torch.equal(result, expected[0])


@pytest.mark.parametrize("bulk", [False, True])
def test_waiting_is_counted_on_all_connections(bulk):
    groups = make_groups(2, bulk=bulk)
    early, late = groups
    sums = [QuantisedCollectives(group, policy_of("int8")) for group in groups]
    pending = sums[0].start_all_reduce_delta(torch.ones(1, 128), SITE, 0)
    assert sums[0].waited_s == 0.0, "starting is not waiting"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pending.wait)
        assert not waiting.done()
        sums[1].all_reduce_delta(torch.ones(1, 128), SITE, 0)
        assert torch.equal(waiting.result(), torch.full((1, 128), 2.0))
    assert sums[0].waited_s == early.waited_s > 0.0
    assert late.waited_s > 0.0
    for group in groups:
        group.close()


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantised_sums_in_pieces_have_the_bits_of_threads(size, name):
    parts = random_parts(size, 700, 513, dtype=torch.bfloat16)

    def rank(c):
        quantised = QuantisedCollectives(c, policy_of(name))
        return quantised.all_reduce_delta(parts[c.tp.rank].clone(), SITE, 3)

    expected = run_ranks(size, lambda _, c: rank(c))[0]
    for result in on_ranks(size, rank):
        assert torch.equal(result, expected)


def test_a_peer_that_is_gone_is_reported_at_once():
    first, second = make_groups(2, timeout_s=600)
    pending = first.start_all_reduce(torch.ones(1_000_000))
    second.close()
    with pytest.raises(
        RankFailure, match=r"rank 0 of 2: all_reduce over tcp failed, rank 1 (has|is)"
    ):
        pending.wait()
    with pytest.raises(RankFailure, match="rank 1"):
        first.barrier()
    first.close()


def test_a_late_peer_is_reported_after_the_timeout():
    first, second = make_groups(2, timeout_s=0.3)
    with pytest.raises(
        RankFailure, match=r"all_gather over tcp failed, rank 1 did not come.*0\.3 s"
    ):
        first.barrier()
    first.close()
    second.close()
    with pytest.raises(RankFailure, match="the group is closed"):
        second.barrier()


def test_a_mesh_forms_and_strangers_are_turned_away():
    store = c10d.HashStore()

    def rank(r):
        if r == 2:
            store.wait(["mesh/0"])
            host, port, _ = store.get("mesh/0").decode().split()
            stranger = socket.create_connection((host, int(port)))
            stranger.sendall(bytes(36))
            stranger.close()
        tp = TensorParallel(r, 3)
        return connect_mesh(tp, store, "127.0.0.1", 30.0)

    with ThreadPoolExecutor(3) as pool:
        meshes = list(pool.map(rank, range(3)))
    for r, mesh in enumerate(meshes):
        assert [peer is None for peer in mesh] == [other == r for other in range(3)]
        for other in range(r):
            meshes[r][other].sendall(bytes([r]))
            assert meshes[other][r].recv(1) == bytes([r])
    for peer in (peer for mesh in meshes for peer in mesh if peer is not None):
        peer.close()


def test_a_mesh_without_a_rank_is_an_error():
    with pytest.raises(RankFailure, match=r"rank 0 of 2 could not connect .* within 0\.2 s"):
        connect_mesh(TensorParallel(0, 2), c10d.HashStore(), "127.0.0.1", 0.2)


def test_own_address():
    assert address_towards("127.0.0.1", 1) == "127.0.0.1"
