import os
import warnings
from contextlib import closing
from pathlib import Path

import pytest

from sidewinder.parallel import cores, topology


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
def machine(monkeypatch, tmp_path):
    """Pretends to be another machine: (node, package, physical core) of each logical core."""

    def pretend(places):
        for core, (node, package, physical) in enumerate(places):
            folder = tmp_path / f"cpu{core}"
            (folder / f"node{node}").mkdir(parents=True)
            write(folder / "topology/physical_package_id", f"{package}\n")
            write(folder / "topology/core_id", f"{physical}\n")
        monkeypatch.setattr(topology, "CPU_ROOT", tmp_path)
        monkeypatch.setattr(cores, "HOLD_PREFIX", f"\0sidewinder-test-{os.getpid()}-")
        monkeypatch.setattr(cores, "affinity", lambda: list(range(len(places))))
        monkeypatch.setattr(cores, "cgroup_quota", lambda: None)

    return pretend


@pytest.fixture
def eight_cores(machine):
    """Four physical cores in two packages, with two hardware threads each: (0, 4), (1, 5), ..."""
    machine([(core % 4 // 2, core % 4 // 2, core % 2) for core in range(8)])


@pytest.mark.usefixtures("eight_cores")
def test_a_thread_for_each_physical_core(monkeypatch):
    assert [cores.threads_per_rank(None, ranks) for ranks in (1, 2, 3, 9)] == [4, 2, 1, 1]
    monkeypatch.setattr(cores, "cgroup_quota", lambda: 3.0)
    assert cores.threads_per_rank(None, 1) == 3


@pytest.mark.usefixtures("eight_cores")
def test_lease_takes_physical_cores_first_and_keeps_neighbours_together():
    with closing(cores.lease_cores(2, 2)) as lease:
        assert lease.cores == ((0, 1), (2, 3))
    with closing(cores.lease_cores(1, 3)) as lease:
        assert lease.cores == ((0, 1, 2),)
    with closing(cores.lease_cores(2, 4)) as lease:
        assert lease.cores == ((0, 4, 1, 5), (2, 6, 3, 7))
    with closing(cores.lease_cores(2, 3)) as lease:
        assert lease.cores == ((0, 4, 1), (5, 2, 3))


@pytest.mark.usefixtures("eight_cores")
def test_lease_keeps_others_out():
    first = cores.lease_cores(2, 2)
    second = cores.lease_cores(1, 3)
    assert second.cores == ((4, 5, 6),)
    assert cores.lease_cores(2, 1) is None, "one core is left"
    first.close()
    first.close()
    third = cores.lease_cores(2, 1)
    assert third.cores == ((0,), (1,))
    for lease in (second, third):
        lease.close()


def test_a_memory_node_may_be_part_of_a_package(machine):
    machine([(core // 2, 0, core) for core in (0, 2, 1, 3)])
    with closing(cores.lease_cores(2, 2)) as lease:
        assert lease.cores == ((0, 2), (1, 3))


def test_cores_whose_place_is_not_told(monkeypatch, tmp_path):
    monkeypatch.setattr(topology, "CPU_ROOT", tmp_path)
    assert topology.physical_cores(range(3)) == 3
    assert topology.memory_nodes(range(3)) == 1
    assert topology.in_order_of_use([2, 0, 1]) == [0, 1, 2]
    write(tmp_path / "cpu0/topology/core_id", "-1\n")
    assert topology.place_of(0) == (0, 0, -1, 0)


@pytest.mark.usefixtures("eight_cores")
def test_weights_across_memory_nodes():
    cores.advise_on_nodes.cache_clear()
    with pytest.warns(UserWarning, match="2 memory nodes, and 1 rank reads weights .* tp=2"):
        cores.advise_on_nodes(1, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cores.advise_on_nodes(1, 2)
        cores.advise_on_nodes(2, 3)
    cores.advise_on_nodes.cache_clear()


@pytest.mark.usefixtures("eight_cores")
def test_no_lease_beyond_the_quota(monkeypatch):
    monkeypatch.setattr(cores, "cgroup_quota", lambda: 3.0)
    assert cores.lease_cores(2, 2) is None
