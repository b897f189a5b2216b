"""Which transport GPUs get, and what is said where symmetric memory cannot be had."""

import pytest
import torch

from sidewinder.collectives import symmetric_cuda
from sidewinder.collectives.symmetric import SymmetricCollectives
from sidewinder.collectives.symmetric_cuda import with_symmetric_memory
from sidewinder.parallel import devices
from sidewinder.parallel.devices import SHARE_VARIABLE, resolve_device, shares_gpus
from sidewinder.parallel.gpu_group import gpu_of, gpu_transport
from sidewinder.testing import run_ranks


def test_ranks_share_a_card_only_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv(SHARE_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="2 ranks need a GPU each and this machine has 1"):
        resolve_device("cuda", 1, 2)
    assert gpu_transport(None, 2) == "symmetric memory"
    monkeypatch.setenv(SHARE_VARIABLE, "1")
    assert resolve_device("cuda", 1, 2) == torch.device("cuda", 0)
    assert gpu_transport(None, 2) == gpu_transport("nccl", 2) == "staged"
    assert not shares_gpus(1)
    assert gpu_of("cuda:3") == torch.device("cuda", 0)
    assert devices.resolve_device("auto", 0, 2).type == "cpu", "sharing is never chosen by itself"


def test_symmetric_memory_stays_on_one_machine():
    assert gpu_transport(None, 8, one_machine=False) == "nccl"
    assert gpu_transport("nccl", 8) == "nccl"


class NoPeers:
    def __init__(self, tp, *_):
        if tp.rank in self.failing:
            raise RuntimeError("CUDA IPC is not permitted here\nmore lines")

    n_bytes = 64
    direct_bytes = 0
    buffers = (torch.empty(64, dtype=torch.uint8),) * 2

    def close(self):
        pass


@pytest.mark.parametrize("failing", [(), (1,), (0, 1)])
def test_all_ranks_have_symmetric_memory_or_none(failing, monkeypatch, recwarn):
    monkeypatch.setattr(symmetric_cuda, "CudaPeers", NoPeers)
    monkeypatch.setattr(symmetric_cuda, "backend_of", lambda _: None)
    monkeypatch.setattr(NoPeers, "failing", failing, raising=False)

    def run(_, inner):
        chosen = with_symmetric_memory(inner, None, torch.device("cpu"), 1.0, "x")
        return isinstance(chosen, SymmetricCollectives)

    assert run_ranks(2, run) == [not failing] * 2
    said = [str(each.message) for each in recwarn]
    assert any("no symmetric memory (CUDA IPC is not permitted here)" in text for text in said) == (
        bool(failing)
    )


def test_the_reason_is_said_on_a_machine_without_gpus():
    inner = Alone()
    with pytest.warns(UserWarning, match="sums go over threads: no symmetric memory"):
        assert with_symmetric_memory(inner, None, torch.device("cpu"), 1.0, "x") is inner


class Alone:
    """A group of one that has no process group of torch."""

    from sidewinder.parallel.group import SINGLE as tp

    path = "threads"

    def all_reduce(self, x):
        return x
