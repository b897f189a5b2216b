"""Worker processes: calls, errors, and what is left when they end."""

import json
import os
import pickle
import signal
import time
from pathlib import Path

import pytest
import torch

from sidewinder.parallel.errors import NotFinite, RankError, RankFailure, in_one_line
from sidewinder.parallel.process_executor import ProcessExecutor


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_call_returns_rank_zero_result(pool):
    assert pool(2).call("ping", "an", "argument") == 0


def test_ranks_are_other_processes_with_their_own_threads(pool):
    pid, size, path, threads = pool(3).call("who")
    assert pid == pool(3).pids[0] != os.getpid()
    assert (size, path, threads) == (3, "gloo", 1)


@pytest.mark.usefixtures("json_log")
def test_ranks_write_json_where_their_caller_does(start, capfd):
    start(2).call("warn", "what a rank has to say")
    said = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["message"] for line in said] == ["what a rank has to say"] * 2


@pytest.mark.fresh_ranks
def test_threads_are_the_setting_not_the_environment(start, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert start(1, threads=2).call("who")[3] == 2


def test_what_ranks_cannot_import_comes_back(start, monkeypatch):
    """The caller has read its variables long ago; its ranks read them now."""
    monkeypatch.setenv("SIDEWINDER_OPS", "cuda")
    with pytest.raises(ValueError, match=r"'cuda'.*SIDEWINDER_OPS.*reference") as caught:
        start(2)
    assert "_check" in str(caught.value.__cause__), "the rank's traceback is the cause"


@pytest.mark.parametrize("size", [0, 1, 65_527, 65_528, 65_529, 3_000_000])
def test_messages_of_every_size_travel_both_ways(pool, size):
    value = b"x" * size
    assert pool(2).call("echo", value) == value


def test_tensors_travel(pool):
    value = torch.randn(300, 700)
    assert torch.equal(pool(2).call("echo", value), value)


def test_value_error_of_all_ranks_comes_back_and_the_executor_lives(pool):
    with pytest.raises(ValueError, match=r"^slot 9 of 4$") as caught:
        pool(2).call("raise_on", [0, 1], ValueError("slot 9 of 4"))
    assert "raise_on" in str(caught.value.__cause__), "the rank's traceback is the cause"
    assert pool(2).call("ping") == 0


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (FileNotFoundError("no such folder"), FileNotFoundError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ValueError),
        (NotFinite("row 0 of 1"), NotFinite),
        (KeyError("layers.3"), RankError),
    ],
    ids=lambda it: getattr(it, "__name__", type(it).__name__),
)
def test_error_classes(pool, raised, expected):
    with pytest.raises(expected) as caught:
        pool(2).call("raise_on", [0, 1], raised)
    assert type(caught.value) is expected


def test_other_errors_carry_the_traceback(pool):
    whole = r"(?s)rank 0 of 2 raised.*in raise_on.*KeyError: 'lost'"
    with pytest.raises(RankError, match=whole) as caught:
        pool(2).call("raise_on", [0, 1], KeyError("lost"))
    assert in_one_line(caught.value) == "rank 0 of 2 raised KeyError: 'lost'"
    assert in_one_line(RankFailure("rank 1 died")) == "RankFailure: rank 1 died"


def test_result_that_cannot_be_pickled_is_an_error(start):
    with pytest.raises(RankError, match=r"unpicklable|pickle"):
        start(2).call("unpicklable")


@pytest.mark.parametrize("method", ["raise_on", "raise_before_sum"])
def test_error_on_one_rank_ends_the_executor(start, method):
    executor = start(2)
    pids = executor.pids
    with pytest.raises(ValueError, match="only here"):
        executor.call(method, [1], ValueError("only here"))
    assert all(map(gone, pids))
    with pytest.raises(RuntimeError, match="closed: only here"):
        executor.call("ping")


@pytest.mark.parametrize("fail_rank", [0, 1, "all"])
def test_error_while_starting_comes_back(fail_rank):
    model = {"fail_rank": fail_rank, "fail_with": ValueError("weights are missing")}
    with pytest.raises(ValueError, match=r"^weights are missing$"):
        ProcessExecutor(2, "rank_toys:build_toy", None, model)


def test_unknown_target_is_reported():
    with pytest.raises(RankError, match="ModuleNotFoundError: No module named 'no_such_module'"):
        ProcessExecutor(2, "no_such_module:build", None, None)


@pytest.mark.fresh_ranks
def test_setup_that_cannot_be_pickled_leaves_no_worker():
    before = children()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        ProcessExecutor(2, "rank_toys:build_toy", lambda: None, None)
    assert children() == before


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def temporary_files() -> set[str]:
    return {
        name for folder in ("/tmp", "/dev/shm") for name in os.listdir(folder) if "side" in name
    }


@pytest.mark.fresh_ranks
def test_close_leaves_nothing_and_can_be_repeated(start):
    before = open_files(), temporary_files(), children()
    executor = start(3)
    pids = executor.pids
    executor.call("check_sum", (5,), torch.float32, 0)
    executor.close()
    executor.close()
    assert all(map(gone, pids))
    assert (open_files(), temporary_files(), children()) == before
    with pytest.raises(RuntimeError, match=r"closed: close\(\) was called"):
        executor.call("ping")


@pytest.mark.fresh_ranks
def test_forgotten_executor_ends_its_ranks():
    executor = ProcessExecutor(2, "rank_toys:build_toy", None, None)
    pids = executor.pids
    del executor
    assert all(map(gone, pids))


def test_two_executors_side_by_side(start):
    first, second = start(2), start(3)
    for seed in range(3):
        assert first.call("check_sum", (100,), torch.float32, seed)
        assert second.call("check_sum", (100,), torch.bfloat16, seed)
    first.close()
    assert second.call("check_sum", (7,), torch.float32, 9)


def test_nothing_listens_beyond_loopback(pool):
    pool(3).call("ping")
    sockets = {
        os.readlink(f"/proc/{pid}/fd/{fd}")
        for pid in pool(3).pids
        for fd in os.listdir(f"/proc/{pid}/fd")
    }
    rows = [
        row.split()
        for table in ("tcp", "tcp6", "udp", "udp6")
        for row in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
    ]
    listening = [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
    assert listening, "gloo listens somewhere"
    assert all(address.startswith("0100007F:") for address in listening), listening


def test_failed_rank_failure_is_a_runtime_error():
    assert issubclass(RankFailure, RuntimeError)


def look_often(executor, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        executor.check()
        time.sleep(0.2)


def test_a_rank_that_is_stopped_between_calls_is_found(start):
    executor = start(2, timeout_s=2.0)
    assert executor.call("ping") == 0
    pids = executor.pids
    look_often(executor, 4)  # silence of those that live adds up to nothing
    os.kill(pids[1], signal.SIGSTOP)
    with pytest.raises(RankFailure, match=r"rank 1 of 2 has given no sign of life for 2 s .*pause"):
        look_often(executor, 20)
    assert all(map(gone, pids))


def test_a_pause_of_the_caller_is_not_the_ranks_silence(start):
    executor = start(2, timeout_s=3.0)
    os.kill(executor.pids[1], signal.SIGSTOP)
    executor.check()
    time.sleep(5)  # as if all of them had been stopped
    executor.check()
    os.kill(executor.pids[1], signal.SIGCONT)
    time.sleep(2)
    executor.check()
    assert executor.call("ping") == 0


@pytest.mark.fresh_ranks
def test_a_rank_that_ended_between_calls_is_found(start):
    executor = start(2)
    executor.check()
    assert executor.call("ping") == 0
    pids = executor.pids
    os.kill(pids[1], signal.SIGKILL)
    os.waitid(os.P_PID, pids[1], os.WEXITED | os.WNOWAIT)
    with pytest.raises(RankFailure, match=r"rank 1 of 2 died \(signal 9, SIGKILL\) during a pause"):
        executor.check()
    assert all(map(gone, pids))
    with pytest.raises(RuntimeError, match="the executor is closed: rank 1 of 2 died"):
        executor.call("ping")


def test_a_fork_of_the_caller_is_refused_and_does_no_harm(start):
    """It has the caller's sockets, and would take its answers."""
    executor = start(2)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        for use in (lambda: executor.call("ping"), executor.check):
            try:
                use()
            except RuntimeError as error:
                os.write(theirs, f"{error}\n".encode())
        os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    said = os.read(ours, 1 << 12).decode().splitlines()
    os.close(ours), os.close(theirs)
    assert len(said) == 2
    assert all(f"belong to process {os.getpid()}" in line and "spawn" in line for line in said)
    assert executor.call("ping") == 0
