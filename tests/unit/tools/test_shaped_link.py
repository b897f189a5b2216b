"""Links of a set rate between network namespaces; skipped where they may not be made."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "shaped_link.py"

SEND = """
import os, socket, time
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
master = os.environ["MASTER_ADDR"], 5000
if rank == 0:
    listener = socket.create_server(master)
    peers = [listener.accept()[0] for _ in range(size - 1)]
    while any(peer.recv(1 << 16) for peer in peers):
        pass
else:
    while True:
        try:
            peer = socket.create_connection(master, timeout=5)
            break
        except OSError:
            time.sleep(0.05)
    peer.sendall(bytes(500_000))
"""


def run(*arguments, **options):
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def has_privilege():
    programs = ("ip", "tc", "unshare")
    if not all(map(shutil.which, programs)):
        return False
    probe = (
        "ip link add end0 type veth peer name end1 && ip link add hub type bridge && "
        "tc qdisc add dev end0 root tbf rate 1gbit burst 64kb latency 1ms"
    )
    command = ["unshare", "--net", "sh", "-c", probe]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_privilege = pytest.mark.skipif(not has_privilege(), reason="may not make shaped links here")


@pytest.mark.parametrize("rate", ["fast", "0gbit"])
def test_a_rate_that_is_none_is_refused(rate):
    result = run("--rate", rate, "--", "true")
    assert result.returncode == 2
    assert "is not a rate; write a number and kbit, mbit, gbit" in result.stderr


def test_a_system_that_cannot_is_refused():
    result = run("--", "true", env={**os.environ, "PATH": "/nowhere"})
    assert result.returncode == 2
    assert "shaped_link: needs the program ip (packages iproute2 and util-linux)" in result.stderr


@needs_privilege
@pytest.mark.parametrize("ranks", [2, 3])
def test_links_have_their_rate_and_count_their_bytes(ranks):
    result = run("--ranks", str(ranks), "--rate", "10mbit", "--", sys.executable, "-c", SEND)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    senders = report["links"][1:]
    assert all(500_000 < link["sent_bytes"] < 600_000 for link in senders)
    assert report["links"][0]["received_bytes"] > 500_000 * len(senders)
    # What may pass at once counts against the time that the rate allows.
    assert report["seconds"] > (500_000 * len(senders) - 64 * 1024) * 8 / 10e6


@needs_privilege
def test_a_rank_s_exit_status_is_the_tool_s():
    script = 'test "$RANK" = 0 || exit 7'
    result = run("--rate", "1gbit", "--", "sh", "-c", script)
    assert result.returncode == 7
    statuses = [link["status"] for link in json.loads(result.stdout.splitlines()[-1])["links"]]
    assert statuses == [0, 7]


@needs_privilege
def test_a_killed_tool_leaves_no_process(tmp_path):
    script = f"echo $$ > {tmp_path}/$RANK; sleep 600"
    tool = subprocess.Popen([sys.executable, str(TOOL), "--", "sh", "-c", script])
    files = [tmp_path / "0", tmp_path / "1"]
    deadline = time.monotonic() + 60
    while not all(file.exists() and file.read_text().strip() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    tool.kill()
    tool.wait()
    pids = [int(file.read_text()) for file in files]
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
