import os
from pathlib import Path

import pytest

from sidewinder.parallel import cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_quota_v2_is_the_smallest_of_all_levels(tmp_path):
    write(tmp_path / "cgroup", "0::/a/b\n")
    write(tmp_path / "root/a/b/cpu.max", "max 100000\n")
    write(tmp_path / "root/a/cpu.max", "150000 100000\n")
    write(tmp_path / "root/cpu.max", "400000 100000\n")
    assert cores.cgroup_quota(tmp_path / "root", tmp_path / "cgroup") == 1.5


def test_quota_v1(tmp_path):
    write(tmp_path / "cgroup", "3:cpuset:/\n2:cpu,cpuacct:/job\n0::/\n")
    write(tmp_path / "root/cpu,cpuacct/job/cpu.cfs_quota_us", "250000\n")
    write(tmp_path / "root/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n")
    assert cores.cgroup_quota(tmp_path / "root", tmp_path / "cgroup") == 2.5


def test_no_quota(tmp_path):
    write(tmp_path / "cgroup", "1:cpu:/\n0::/not/visible/here\n")
    write(tmp_path / "root/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "root/cpu/cpu.cfs_period_us", "100000\n")
    assert cores.cgroup_quota(tmp_path / "root", tmp_path / "cgroup") is None
    assert cores.cgroup_quota(tmp_path / "root", tmp_path / "no such file") is None


@pytest.mark.parametrize(
    ("quota", "ranks", "expected"),
    [(None, 2, 4), (None, 3, 2), (None, 9, 1), (2.9, 2, 1), (0.5, 1, 1)],
)
def test_threads_divide_what_affinity_and_quota_allow(monkeypatch, quota, ranks, expected):
    monkeypatch.setattr(cores, "affinity", lambda: list(range(8)))
    monkeypatch.setattr(cores, "cgroup_quota", lambda: quota)
    assert cores.threads_per_rank(None, ranks) == expected


def test_given_threads_are_kept_and_checked():
    assert cores.threads_per_rank(7, 2) == 7
    with pytest.raises(ValueError, match="threads=0: a rank needs 1 thread or more"):
        cores.threads_per_rank(0, 2)
    with pytest.raises(ValueError, match=r"threads=1025: a rank may have 1024 threads, and \d+"):
        cores.threads_per_rank(1025, 2)


@pytest.fixture
def eight_cores(monkeypatch):
    """Eight usable cores of two packages, with two hardware threads each: (0, 4), (1, 5), ..."""
    monkeypatch.setattr(cores, "HOLD_PREFIX", f"\0sidewinder-test-{os.getpid()}-")
    monkeypatch.setattr(cores, "affinity", lambda: list(range(8)))
    monkeypatch.setattr(cores, "cgroup_quota", lambda: None)
    monkeypatch.setattr(cores, "_place", lambda core: (core % 4 // 2, core % 4, core))


@pytest.mark.usefixtures("eight_cores")
def test_lease_keeps_neighbours_together_and_others_out():
    first = cores.lease_cores(2, 2)
    assert first.cores == ((0, 4), (1, 5))
    second = cores.lease_cores(1, 3)
    assert second.cores == ((2, 6, 3),)
    assert cores.lease_cores(2, 1) is None, "one core is left"
    first.close()
    first.close()
    third = cores.lease_cores(2, 1)
    assert third.cores == ((0,), (4,))
    for lease in (second, third):
        lease.close()


@pytest.mark.usefixtures("eight_cores")
def test_no_lease_beyond_the_quota(monkeypatch):
    monkeypatch.setattr(cores, "cgroup_quota", lambda: 3.0)
    assert cores.lease_cores(2, 2) is None
