"""Ranks of unlike machines compare the level of their kernels."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from sidewinder.collectives.distributed import c10d
from sidewinder.ops import dispatch, native
from sidewinder.parallel.errors import RankFailure
from sidewinder.parallel.group import TensorParallel
from sidewinder.parallel.same_kernels import LEVELS, check_same_kernels, kernels_here


def compare(*kernels):
    """What each rank is told; None where nothing is wrong."""
    store, size = c10d.HashStore(), len(kernels)

    def rank(r):
        try:
            check_same_kernels(TensorParallel(r, size), store, kernels[r], 20.0)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(rank, range(size)))


ALL_LEVELS = {level for levels in LEVELS for level in levels}


@pytest.mark.parametrize("kind", [*sorted(ALL_LEVELS), "torch"])
def test_like_ranks_agree(kind):
    assert compare(kind, kind, kind) == [None] * 3


def test_unlike_levels_are_refused_by_every_rank_with_the_level_that_all_have():
    told = compare("avx512_bf16", "avx2", "avx512_bf16", "avx512")
    assert len(set(told)) == 1
    assert "avx512_bf16 (rank 0, 2), avx2 (rank 1), avx512 (rank 3)" in told[0]
    assert "set SIDEWINDER_ISA=avx2 for every rank" in told[0]


def test_unlike_machines_have_the_portable_level():
    for others in ("avx512", "neon"), ("neon", "portable"), ("neon", "avx2", "portable"):
        (told,) = set(compare(*others))
        assert "set SIDEWINDER_ISA=portable for every rank" in told


def test_a_rank_without_the_native_module_is_refused():
    told = compare("avx2", "torch")
    assert "avx2 (rank 0), torch (rank 1)" in told[0] == told[1]
    assert "same SIDEWINDER_OPS" in told[0]
    assert "SIDEWINDER_ISA" not in told[0]


def test_a_rank_that_does_not_come_is_a_failure():
    with pytest.raises(RankFailure, match=r"did not come within 0\.2 s"):
        check_same_kernels(TensorParallel(0, 2), c10d.HashStore(), "avx2", 0.2)


def test_what_runs_here():
    with dispatch.forced("torch"):
        assert kernels_here() == "torch"
    with dispatch.forced("native"):
        assert kernels_here() == (native.isa() or "torch")
    assert native.isa() in (*ALL_LEVELS, None)
