"""Ranks that die, stop or hang, and callers that vanish: all end soon, with one clear message."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sidewinder.parallel.errors import RankFailure

CALLER = """
import sys
from sidewinder.parallel.process_executor import ProcessExecutor
executor = ProcessExecutor(2, "rank_toys:build_toy", None, None)
print(*executor.pids, flush=True)
executor.call(*eval(sys.argv[1]))
"""


def wait_until_gone(pids: list[int], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"processes {alive} are left"
        time.sleep(0.02)


def start_caller(*call: object) -> tuple[subprocess.Popen, list[int]]:
    """A script without a main guard, in the middle of `call`; and its workers."""
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, repr(call)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = [int(pid) for pid in caller.stdout.readline().split()]
    assert len(pids) == 2, caller.stderr.read()
    time.sleep(0.3)
    return caller, pids


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.fresh_ranks
def test_killed_rank_ends_the_others(start, size):
    executor = start(size)
    pids = executor.pids
    began = time.monotonic()
    with pytest.raises(RankFailure, match=rf"rank 1 of {size} died \(signal 9, SIGKILL\)"):
        executor.call("kill", 1, signal.SIGKILL)
    assert time.monotonic() - began < 10
    wait_until_gone(pids, 0)


def test_rank_killed_between_calls(start):
    executor = start(2)
    os.kill(executor.pids[0], signal.SIGKILL)
    with pytest.raises(RankFailure, match="rank 0 of 2 died"):
        executor.call("ping")


@pytest.mark.fresh_ranks
def test_rank_that_exits(start):
    with pytest.raises(RankFailure, match="rank 1 of 3 exited with status 7"):
        start(3).call("leave", 1, 7)


@pytest.mark.fresh_ranks
def test_stopped_rank_counts_as_hung(start):
    executor = start(2, timeout_s=2.0)
    pids = executor.pids
    began = time.monotonic()
    # Silence and lateness reach the same limit together; either may be seen first.
    hung = "has given no sign of life for 2 s|is 2 s behind the others and counts as hung"
    with pytest.raises(RankFailure, match=f"rank 1 of 2 ({hung})"):
        executor.call("stop_without_collective", 1)
    assert time.monotonic() - began < 6
    wait_until_gone(pids, 0)


def test_rank_stopped_while_others_wait_in_a_collective(start):
    executor = start(3, timeout_s=2.0)
    pids = executor.pids
    with pytest.raises(RankFailure, match="rank 2 of 3"):
        executor.call("kill", 2, signal.SIGSTOP)
    wait_until_gone(pids, 0)


def test_large_message_to_a_stopped_rank_does_not_block(start):
    executor = start(2, timeout_s=1.0)
    os.kill(executor.pids[1], signal.SIGSTOP)
    with pytest.raises(RankFailure, match="rank 1 of 2 has not read its call for 1 s"):
        executor.call("echo", b"x" * 10_000_000)


def test_slow_call_with_a_heartbeat_is_not_a_failure(start):
    executor = start(2, timeout_s=1.0)
    executor.call("sleep", 3.0)
    assert executor.call("ping") == 0


def test_rank_missing_in_a_collective_is_reported(start):
    executor = start(2, timeout_s=1.0)
    with pytest.raises(RankFailure, match=r"all_\w+ over .* failed"):
        executor.call("sum_while_waiting", 1, 3.0)


@pytest.mark.parametrize(
    "call", [("sleep", 60.0), ("sum_while_waiting", 1, 60.0)], ids=["computing", "in a collective"]
)
def test_workers_vanish_when_the_caller_is_killed(call):
    caller, pids = start_caller(*call)
    caller.kill()
    wait_until_gone(pids)
    caller.communicate()


def test_stopped_workers_vanish_with_the_caller():
    caller, pids = start_caller("sleep", 60.0)
    os.kill(pids[1], signal.SIGSTOP)
    caller.kill()
    wait_until_gone(pids)
    caller.communicate()


def test_interrupt_ends_the_caller_and_the_ranks():
    caller, pids = start_caller("sum_while_waiting", 1, 60.0)
    caller.send_signal(signal.SIGINT)
    _, messages = caller.communicate(timeout=10)
    wait_until_gone(pids)
    assert messages.count("KeyboardInterrupt") == 1, messages


def test_script_that_forgets_to_close_ends_cleanly():
    caller, pids = start_caller("ping")
    _, messages = caller.communicate(timeout=20)
    assert (caller.returncode, messages) == (0, "")
    wait_until_gone(pids)


def test_close_during_a_call_from_another_thread(start):
    executor = start(2)
    timer = threading.Timer(0.3, executor.close)
    timer.start()
    with pytest.raises(RankFailure):
        executor.call("sleep", 60.0)
    timer.join()
