"""Collectives over buffers that all ranks can read, with threads for ranks: bits as defined."""

import itertools

import pytest
import torch

from sidewinder.collectives import thresholds
from sidewinder.collectives.base import Pending, SingleRank
from sidewinder.collectives.quantised.all_reduce import QuantisedCollectives
from sidewinder.collectives.quantised.policy import PhaseCodecs, Policy
from sidewinder.collectives.staged import StagedCollectives
from sidewinder.collectives.symmetric import SymmetricCollectives
from sidewinder.collectives.thresholds import use_thresholds
from sidewinder.ops import launching
from sidewinder.ops.codec.formats import CODECS
from sidewinder.ops.dispatch import forced
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.testing import assert_close, run_ranks

BUFFER = 4096
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64]


class ThreadPeers:
    """Buffers of threads: each makes its own and shows it to the others."""

    def __init__(self, collectives, fused=False, direct_bytes=0):
        self.n_bytes, self._inner, self._fused = BUFFER, collectives, fused
        self._rank, self.direct_bytes = collectives.tp.rank, direct_bytes
        mine = torch.full((BUFFER + 2 * direct_bytes,), 255, dtype=torch.uint8)
        self.buffers = collectives._group.exchange(self._rank, mine)
        collectives._group.wait()
        self.places = torch.tensor([b.data_ptr() - mine.data_ptr() for b in self.buffers])
        self.meetings, self.started = 0, 0

    def meet(self):
        self.meetings += 1
        self._inner._group.wait()

    def fused_sum(self, n, dtype):
        if not self._fused or dtype not in (torch.float32, torch.bfloat16):
            return None
        self.meet()
        parts = [each[: n * dtype.itemsize].view(dtype).float() for each in self.buffers]
        total = torch.stack(parts).sum(0).to(dtype)
        self.meet()
        return total

    def beside(self, run):
        self.started += 1
        return Pending.done(run())

    def catch_up(self):
        pass

    def subgroup(self, ranks, tp, inner):
        assert tp.size == len(ranks)
        return ThreadPeers(inner, self._fused)

    def close(self):
        self.buffers = []


def symmetric(collectives, **options):
    return SymmetricCollectives(collectives, ThreadPeers(collectives), **options)


def random(rank, *shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(*shape, generator=generator) * 10
    return x.to(dtype)


def same(name, reference, result):
    assert reference.dtype == result.dtype, name
    assert reference.shape == result.shape, name
    assert torch.equal(reference, result), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_verbs_give_the_bits_of_the_definition(ranks, dtype):
    def run(tp, plain):
        ours = symmetric(plain)
        for shape in [(1,), (3, 5), (7, 32), (2, 3, 4)]:
            x = random(tp.rank, *shape, dtype=dtype)
            same("all_reduce", plain.all_reduce(x.clone()), ours.all_reduce(x.clone()))
            sizes = [4 + (rank % 2) for rank in range(ranks)]
            part = random(tp.rank, *shape[:-1], sizes[tp.rank], dtype=dtype)
            same("all_gather", plain.all_gather(part, sizes), ours.all_gather(part, sizes))
            rows = random(tp.rank, ranks, 9, dtype=dtype)
            same("all_to_all", plain.all_to_all(rows), ours.all_to_all(rows))
            started = ours.start_all_reduce(x.clone())
            same("started", plain.all_reduce(x.clone()), started.wait())
        same("broadcast", random(1, 6), ours.broadcast(random(tp.rank, 6), root=1))

    run_ranks(ranks, run)


def test_large_messages_go_underneath():
    def run(tp, plain):
        # As over NCCL: sums above the threshold are left to it, gathers that do not fit, too.
        plain.capturable = True
        peers = ThreadPeers(plain)
        ours = SymmetricCollectives(plain, peers, largest_sum=64)
        for n, through_peers in ((16, True), (17, False), (BUFFER, False)):
            before = peers.meetings
            x = random(tp.rank, n)
            same("sum", plain.all_reduce(x.clone()), ours.all_reduce(x.clone()))
            assert (peers.meetings > before) == through_peers
        for n, through_peers in ((BUFFER // 4, True), (BUFFER // 4 + 1, False)):
            before = peers.meetings
            x = random(tp.rank, n)
            same("gather", plain.all_gather(x, [n] * 2), ours.all_gather(x, [n] * 2))
            assert (peers.meetings > before) == through_peers
        empty = torch.empty(0)
        assert ours.all_reduce(empty).numel() == 0

    run_ranks(2, run)


def test_where_the_transport_waits_on_the_host_all_that_fits_goes_through_the_peers():
    def run(tp, plain):
        assert not plain.capturable
        peers = ThreadPeers(plain)
        ours = SymmetricCollectives(plain, peers, largest_sum=64)
        ours.all_reduce(random(tp.rank, BUFFER // 4))
        assert peers.meetings
        assert ours.capturable

    run_ranks(2, run)


def test_fused_sums_meet_before_and_after():
    def run(tp, plain):
        peers = ThreadPeers(plain, fused=True)
        ours = SymmetricCollectives(plain, peers)
        for round_ in range(50):
            x = torch.full((5,), float(tp.rank + round_))
            assert ours.all_reduce(x).tolist() == [2.0 * round_ + 1] * 5

    run_ranks(2, run)


@pytest.mark.parametrize("codec", ["int8", "int6", "int4"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_quantised_sums_have_the_same_bits_as_over_any_transport(ranks, codec):
    policy = Policy(PhaseCodecs(CODECS[codec], CODECS[codec]), {})

    def run(tp, plain):
        ours, theirs = (QuantisedCollectives(inner, policy) for inner in (symmetric(plain), plain))
        for rows in (1, 3):
            x = random(tp.rank, rows, 130, dtype=torch.bfloat16)
            result = ours.all_reduce_delta(x.clone(), "site", rows)
            same(codec, theirs.all_reduce_delta(x.clone(), "site", rows), result)

    run_ranks(ranks, run)


def test_subgroups_have_buffers_of_their_own():
    def run(tp, plain):
        ours = symmetric(plain)
        pair = ours.subgroup([[0, 2], [1, 3]])
        assert pair.tp.size == 2
        x = torch.tensor([float(tp.rank)])
        assert pair.all_reduce(x).tolist() == [2.0 if tp.rank % 2 == 0 else 4.0]
        alone = ours.subgroup([[rank] for rank in range(4)])
        assert isinstance(alone, SingleRank)
        ours.close()

    run_ranks(4, run)


def test_many_calls_of_alternating_sizes():
    def run(tp, plain):
        ours = symmetric(plain)
        for call, n in zip(range(300), itertools.cycle([1, 100, 7]), strict=False):
            x = torch.full((n,), float(tp.rank * 1000 + call))
            assert ours.all_reduce(x).tolist() == [1000.0 + 2 * call] * n

    run_ranks(2, run)


def test_staged_collectives_are_those_underneath():
    def run(tp, plain):
        ours = StagedCollectives(plain)
        x = random(tp.rank, 3, 4)
        same("sum", plain.all_reduce(x.clone()), ours.all_reduce(x.clone()))
        same("gather", plain.all_gather(x, [4, 4]), ours.all_gather(x, [4, 4]))
        rows = random(tp.rank, 2, 5)
        same("to all", plain.all_to_all(rows), ours.all_to_all(rows))
        same("broadcast", random(1, 2), ours.broadcast(random(tp.rank, 2), root=1))
        assert ours.subgroup([[0], [1]]).tp.size == 1
        assert ours.subgroup([[0, 1]]).path == "threads by way of the host"
        assert not ours.capturable

    run_ranks(2, run)


@pytest.mark.skipif(
    not (launching.is_installed() and launching.is_interpreting()),
    reason="needs Triton's interpreter",
)
@pytest.mark.parametrize("codec", ["int8", "int6", "int4", "bf16"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_direct_sums_have_the_same_bits_as_over_any_transport(ranks, codec):
    """Several on their way at once, in turn through both regions; normed and not."""
    policy, width = Policy(PhaseCodecs(CODECS[codec], CODECS[codec]), {}), 150

    def run(tp, plain):
        peers = ThreadPeers(plain, direct_bytes=4096)
        ours = QuantisedCollectives(SymmetricCollectives(plain, peers), policy)
        theirs = QuantisedCollectives(plain, policy)
        weight, residual = random(90, width, dtype=torch.bfloat16), random(91, 3, width)
        for _ in range(3):
            parts = [random(tp.rank + 10 * n, 3, width, dtype=torch.bfloat16) for n in range(2)]
            before = peers.meetings
            pending = [ours.start_all_reduce_delta(x.clone(), "site", 0) for x in parts]
            assert peers.meetings - before == (4 if ranks == 2 else 6), "not the direct way"
            expected = [theirs.all_reduce_delta(x.clone(), "site", 0) for x in parts]
            same(codec, expected[0], pending[0].wait())
            normed, total = pending[1].normed(weight, 1e-5, residual)
            reference, sum_ = rms_norm(expected[1], weight, 1e-5, residual)
            assert_close("normed", reference, normed, 1e-2)
            same("sum", sum_, total)
        large = torch.ones(40, width, dtype=torch.bfloat16)
        same("large", theirs.all_reduce_delta(large.clone(), "site", 0),
             ours.all_reduce_delta(large.clone(), "site", 0))  # fmt: skip

    with forced("triton"):
        run_ranks(ranks, run)


def test_without_the_kernels_quantised_sums_go_the_general_way():
    def run(_, plain):
        ours = SymmetricCollectives(plain, ThreadPeers(plain, direct_bytes=4096))
        assert ours.start_quantised(torch.ones(1, 8), CODECS["int8"]) is None

    run_ranks(2, run)


def test_the_largest_sum_through_the_peers_is_fitted_and_pinned(tmp_path, monkeypatch):
    file = tmp_path / "thresholds.json"
    file.write_text('{"one_shot_bytes": 96}')
    monkeypatch.setattr(thresholds, "GPU_SIZES", (64, 256, 1024))

    def run(tp, plain):
        plain.capturable = True  # as NCCL: there is another way
        ours = symmetric(plain)
        use_thresholds(ours, None)
        fitted = ours.one_shot_bytes, ours.path
        ours.path = "symmetric memory"
        use_thresholds(ours, str(file))
        same("sum", plain.all_reduce(random(tp.rank, 9)), ours.all_reduce(random(tp.rank, 9)))
        return fitted, ours.one_shot_bytes, ours.path

    results = run_ranks(2, run)
    assert results[0] == results[1]
    (fitted, path), pinned, pinned_path = results[0]
    assert fitted in (0, 64, 256, 1024)
    assert path.endswith("KB, fitted)")
    assert pinned == 96
    assert pinned_path == "symmetric memory (one-shot up to 0 KB, pinned)"


def test_where_there_is_no_other_way_nothing_is_fitted():
    def run(_, plain):
        ours = symmetric(plain)
        use_thresholds(ours, None)
        assert ours.one_shot_bytes == BUFFER

    run_ranks(2, run)
