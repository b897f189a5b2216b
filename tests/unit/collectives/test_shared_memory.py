"""Shared-memory collectives with threads as ranks: exact sums at every size, type and level."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_memory_cases import on_ranks
from torch import Tensor

from sidewinder.collectives import shared_memory
from sidewinder.collectives.rank_order import sum_in_rank_order
from sidewinder.collectives.shared_memory import SharedMemoryCollectives
from sidewinder.parallel.errors import RankFailure

native = shared_memory.native
pytestmark = pytest.mark.skipif(native is None, reason="native module not built")

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SLOT = 1 << 20


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))


def check_sum(parts: Tensor) -> None:
    """All ranks get `sum_in_rank_order(parts)`, bit for bit."""
    results = on_ranks(len(parts), lambda c: c.all_reduce(parts[c.tp.rank].clone()))
    reference = sum_in_rank_order(parts)
    for result in results:
        torch.testing.assert_close(result, reference, rtol=0, atol=0, equal_nan=True)
        assert same_bits(result, results[0])


@pytest.fixture(params=["portable", "neon", "avx2", "avx512"])
def level(request):
    try:
        native.set_isa(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield
    native.set_isa("")


def random_parts(size: int, count: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, count, generator=generator, dtype=torch.float64)
    return (values * 10 ** torch.randn(size, count, generator=generator)).to(dtype)


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(2, 5),
    count=st.integers(0, 300),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 1000),
)
def test_sums_of_small_messages(size, count, dtype, seed):
    check_sum(random_parts(size, count, dtype, seed))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.usefixtures("level")
def test_sums_of_all_lengths_of_tails(size, dtype):
    for count in (1, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 64 * size + 1):
        check_sum(random_parts(size, count, dtype, count))


@pytest.mark.parametrize("two_shot_bytes", [0, 1 << 62], ids=["two-shot", "one-shot"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_both_algorithms_at_the_edges_of_slots_and_stripes(monkeypatch, size, two_shot_bytes):
    monkeypatch.setattr(shared_memory, "ONE_SHOT_BYTES", two_shot_bytes)
    monkeypatch.setattr(shared_memory, "ALWAYS_ONE_SHOT", two_shot_bytes)
    for count in (1, 63, 64 * size - 1, 64 * size + 1, SLOT // 4 - 1, SLOT // 4 + 1, SLOT + 3):
        check_sum(random_parts(size, count, torch.float32, count))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("level")
def test_every_sixteen_bit_value_survives(dtype):
    """Denormals, infinities, NaN, negative zero."""
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    check_sum(torch.stack([every, torch.full_like(every, -0.0)]))
    check_sum(torch.stack([every, every.flip(0)]))
    check_sum(torch.stack([every, every.roll(12_345), every.roll(-333)]))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bad_values_come_out_bad_on_all_ranks(dtype):
    inf, nan = float("inf"), float("nan")
    parts = torch.tensor([[nan, 1.0, inf, inf, 1.0], [1.0, nan, 2.0, -inf, 1.0]], dtype=dtype)
    for result in on_ranks(2, lambda c: c.all_reduce(parts[c.tp.rank].clone())):
        assert result.isnan().tolist() == [True, True, False, True, False]
        assert result[2] == inf


@pytest.mark.usefixtures("level")
def test_rounding_beyond_float16_gives_infinity():
    parts = torch.tensor([[65504.0, 65504.0], [15.0, 16.0]], dtype=torch.float16)
    check_sum(parts)


def test_integers_are_summed_too():
    check_sum(torch.arange(30).view(3, 10))


def test_repeats_give_the_same_bits():
    parts = random_parts(3, 10_000, torch.float32, 0)
    runs = [on_ranks(3, lambda c: c.all_reduce(parts[c.tp.rank].clone()))[0] for _ in range(20)]
    assert all(same_bits(run, runs[0]) for run in runs)


def test_strided_input_is_summed():
    parts = random_parts(2, 60, torch.float32, 1).view(2, 6, 10)
    results = on_ranks(2, lambda c: c.all_reduce(parts[c.tp.rank].t()))
    assert torch.equal(results[0], sum_in_rank_order(parts).t())


@pytest.mark.parametrize("rows", [0, 1, 3, 1000])
@pytest.mark.parametrize(
    "sizes", [[5, 5], [3, 0, 4], [0, 0], [1, 300_001], [300_000, 7, 299_999, 2]], ids=str
)
def test_gather_of_uneven_shares(sizes, rows):
    if rows * max(sizes) > 10_000_000:
        rows = 13
    parts = [random_parts(rows, size, torch.float32, size) for size in sizes]
    results = on_ranks(len(sizes), lambda c: c.all_gather(parts[c.tp.rank], sizes))
    for result in results:
        assert torch.equal(result, torch.cat(parts, -1))


@pytest.mark.parametrize("count", [0, 1, SLOT, SLOT + 1, 3 * SLOT + 5])
def test_broadcast_from_every_root(count):
    parts = random_parts(3, count, torch.bfloat16, 4).view(torch.uint8)[:, : count + 1]

    def send(c: SharedMemoryCollectives) -> list[Tensor]:
        return [c.broadcast(parts[c.tp.rank].clone(), root) for root in range(3)]

    for received in on_ranks(3, send):
        assert all(torch.equal(a, b) for a, b in zip(received, parts, strict=True))


def test_broadcasts_without_an_answer_do_not_overtake_the_reader():
    def send(c: SharedMemoryCollectives) -> list[int]:
        seen = []
        for i in range(50):
            x = torch.full((1000,), i if c.tp.rank == 0 else -1)
            seen.append(int(c.broadcast(x).sum()) // 1000)
            if c.tp.rank == 1 and i % 10 == 0:
                time.sleep(0.01)
        return seen

    assert on_ranks(2, send) == [list(range(50))] * 2


@pytest.mark.parametrize(
    "partition", [[[0, 1], [2, 3]], [[3, 1], [0, 2]], [[0], [1, 2, 3]]], ids=str
)
def test_subgroups_mix_with_the_whole_group(partition):
    def work(c: SharedMemoryCollectives) -> list[float]:
        group = c.subgroup(partition)
        mine = torch.tensor([10.0**c.tp.rank])
        return [float(g.all_reduce(mine.clone())) for _ in range(20) for g in (group, c, group)]

    for rank, seen in enumerate(on_ranks(4, work)):
        part = sum(10.0**member for ranks in partition if rank in ranks for member in ranks)
        assert seen == [part, 1111.0, part] * 20


def test_rank_that_does_not_come_is_named_and_the_group_is_over():
    def work(c: SharedMemoryCollectives) -> None:
        if c.tp.rank == 2:
            time.sleep(1.5)
            return
        with pytest.raises(
            RankFailure, match=r"all_reduce over shared memory failed, rank 2 did not"
        ):
            c.all_reduce(torch.ones(3))
        with pytest.raises(RankFailure, match="the group is over since a rank failed"):
            c.barrier()

    on_ranks(3, work, timeout_s=0.5)


def test_use_after_close_is_an_error():
    def work(c: SharedMemoryCollectives) -> None:
        c.close()
        with pytest.raises(RuntimeError, match="the collectives are closed"):
            c.barrier()

    on_ranks(2, work)
