"""Shared memory between real ranks: many calls, few cores, dead peers, and cores of one's own."""

import os
import subprocess
import sys

import pytest
import torch

from sidewinder.collectives.shared_memory import create_segment, native
from sidewinder.parallel import cores

pytestmark = pytest.mark.skipif(native is None, reason="native module not built")

SHM = "shared memory"

PEER = """
import os, signal, sys, time, torch
from sidewinder.collectives.shared_memory import SharedMemoryCollectives, open_segment
from sidewinder.collectives.quantised.all_reduce import QuantisedCollectives
from sidewinder.collectives.quantised.policy import policy_of
from sidewinder.parallel.errors import RankFailure
from sidewinder.parallel.group import TensorParallel
rank, fd = int(sys.argv[1]), int(sys.argv[2])
ranks = SharedMemoryCollectives(TensorParallel(rank, 2), open_segment(fd, 2), 600, own_cores=False)
ranks = QuantisedCollectives(ranks, policy_of(sys.argv[3]))
for call in range(1000):
    if (rank, call) == (1, 700):
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        ranks.all_reduce_delta(torch.ones(50, 100), "site", 0)
    except RankFailure as failure:
        sys.exit(str(failure))
"""


@pytest.mark.parametrize(("codec", "verb"), [("exact", "all_reduce"), ("int4", "all_gather")])
def test_killed_peer_is_reported_long_before_the_timeout(codec, verb):
    fd = create_segment(2)
    peers = [
        subprocess.Popen(
            [sys.executable, "-c", PEER, str(rank), str(fd), codec],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=[fd],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    os.close(fd)
    _, message = peers[0].communicate(timeout=300)
    peers[1].communicate()
    assert message.startswith(f"rank 0 of 2: {verb} over shared memory failed, rank 1 has died"), (
        message
    )


@pytest.mark.parametrize("size", [2, 3, 4])
def test_alternating_sizes_and_verbs(pool, size):
    assert pool(size, SHM).call("hammer", 20_000, size) == 20_000


def test_two_engines_side_by_side(start):
    first, second = start(2, transport=SHM), start(2, transport=SHM)
    for seed in range(20):
        assert first.call("hammer", 200, seed) == 200
        assert second.call("hammer", 200, seed) == 200


@pytest.mark.parametrize("shape", [(300_001,), (700_003,), (3, 262_144)], ids=str)
@pytest.mark.parametrize("size", [2, 3])
def test_messages_longer_than_a_slot(pool, size, shape):
    for dtype in (torch.float32, torch.bfloat16):
        assert pool(size, SHM).call("check_sum", shape, dtype, 5)


@pytest.mark.skipif(cores.usable_cores() < 2, reason="needs two cores")
def test_ranks_have_cores_of_their_own_and_a_second_group_has_none(start, monkeypatch):
    monkeypatch.setattr(cores, "HOLD_PREFIX", f"\0sidewinder-test-{os.getpid()}-")
    everything = set(cores.affinity())
    first = start(2, transport=SHM)
    mine = first.call("gather_affinity")
    assert [len(own) for own in mine] == [1, 1]
    assert mine[0] != mine[1]
    if len(everything) == 2:
        second = start(2, transport=SHM)
        assert second.call("gather_affinity") == [everything, everything]
    assert set(cores.affinity()) == everything, "the caller is never pinned"
    first.close()
    freed = cores.lease_cores(2, 1)
    assert freed is not None
    freed.close()
