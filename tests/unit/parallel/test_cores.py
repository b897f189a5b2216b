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
