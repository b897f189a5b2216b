"""`launch="torchrun"`: every rank makes the same calls; the variables are checked."""

import os
import socket
import subprocess
import sys

import pytest

from sidewinder.collectives.shared_memory import native
from sidewinder.ops import native as ops_native
from sidewinder.parallel.group import TensorParallel
from sidewinder.parallel.torchrun import TorchrunPlace

PLACE = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip

SCRIPT = """
import os, sys, types, torch
from sidewinder.config import EngineConfig
from sidewinder.parallel.launch import start_executor
engine = EngineConfig(model="none", tp=2, device="cpu", dtype="float32", launch="torchrun")
model = types.SimpleNamespace(dtype="float32")
for seed in range(2):
    executor = start_executor(engine, model, "rank_toys:build_toy")
    assert executor.call("check_sum", (11,), torch.bfloat16, seed)
    assert executor.call("check_gather", 3, [2, 5], torch.float32)
    rank, (_, _, path, _) = executor.call("ping"), executor.call("who")
    os.write(1, f"rank {rank} {path}\\n".encode())  # one write: the ranks share the pipe
    if sys.argv[1] == "close":
        executor.close()
"""


def places(size: int) -> list[dict[str, str]]:
    """Variables of ranks that each are alone on a machine, as far as torchrun says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return [
        PLACE | {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0",
                 "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": port,
                 "PYTHONPATH": os.pathsep.join(sys.path)}
        for rank in range(size)
    ]  # fmt: skip


PATHS = ["gloo"] if native is None else ["shared memory", "tcp"]


@pytest.mark.parametrize(
    ("path", "ending"), [(PATHS[0], "close"), (PATHS[0], "forget"), (PATHS[-1], "forget")]
)
def test_two_ranks_under_torchrun(path, ending, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         script, ending],
        env=os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "SIDEWINDER_TRANSPORT": "" if path == PATHS[0] else path,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    expected = [f"rank {rank} {path}" for rank in (0, 0, 1, 1)]
    assert sorted(result.stdout.split("\n")) == ["", *expected]


UNLIKE_SCRIPT = """
import os, types
os.environ["SIDEWINDER_ISA"] = "portable" if os.environ["RANK"] == "1" else ""
from sidewinder.config import EngineConfig
from sidewinder.parallel.launch import start_executor
engine = EngineConfig(model="none", tp=2, device="cpu", dtype="float32", launch="torchrun")
try:
    start_executor(engine, types.SimpleNamespace(dtype="float32"), "rank_toys:build_toy")
except ValueError as error:
    os.write(1, f"{error}\\n".encode())
"""


@pytest.mark.skipif(ops_native.isa() in (None, "portable"), reason="one level runs here")
def test_ranks_of_unlike_kernels_are_told_what_to_set(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNLIKE_SCRIPT)
    ranks = [
        subprocess.Popen(
            [sys.executable, script], env=os.environ | place, stdout=subprocess.PIPE, text=True
        )
        for place in places(2)
    ]
    told = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert told[0] == told[1]
    assert "portable (rank 1)" in told[0]
    assert "set SIDEWINDER_ISA=portable for every rank" in told[0]


SLOW_SCRIPT = """
import os, time, torch
from sidewinder.parallel import mesh
from sidewinder.parallel.torchrun import TorchrunPlace, join_torchrun
place = TorchrunPlace.read(os.environ, 3)
connect = mesh._connect
def slowly(tp, rank, store, deadline):
    if (tp.rank, rank) == (2, 1):
        time.sleep(1)  # rank 0 has all its connections, and keeps the store
    return connect(tp, rank, store, deadline)
mesh._connect = slowly
group = join_torchrun(place, torch.device("cpu"), "tcp", 20.0, "slow")
assert group.all_reduce(torch.ones(1)).item() == 3
group.close()
"""


@pytest.mark.skipif(native is None, reason="native module not built")
def test_the_first_rank_s_store_outlives_the_forming_of_the_group(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SLOW_SCRIPT)
    ranks = [
        subprocess.Popen([sys.executable, script], env=os.environ | place) for place in places(3)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0, 0]


def test_place_is_read_from_the_environment():
    place = TorchrunPlace(TensorParallel(1, 2), 1, 2, ("127.0.0.1", 29500))
    assert TorchrunPlace.read(PLACE, 2) == place


@pytest.mark.parametrize("name", sorted(PLACE))
def test_absent_variable_is_named(name):
    environment = {key: value for key, value in PLACE.items() if key != name}
    with pytest.raises(ValueError, match=rf"not set: {name}; start with: torchrun"):
        TorchrunPlace.read(environment, 2)


def test_what_is_no_number_is_named():
    with pytest.raises(ValueError, match="LOCAL_RANK='x' is not a number"):
        TorchrunPlace.read(PLACE | {"LOCAL_RANK": "x"}, 2)


def test_world_of_another_size_is_rejected():
    with pytest.raises(ValueError, match="tp=4, but torchrun started 2 ranks"):
        TorchrunPlace.read(PLACE, 4)
