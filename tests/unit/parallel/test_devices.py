import warnings

import pytest
import torch

from sidewinder.parallel import devices
from sidewinder.parallel.devices import resolve_device, resolve_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpus(monkeypatch):
    def have(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return have


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("cpu", 4, CPU),
        ("auto", 0, CPU),
        ("auto", 1, CPU),
        ("auto", 2, torch.device("cuda", 1)),
        ("cuda", 2, torch.device("cuda", 1)),
    ],
)
def test_device_of_the_second_of_two_ranks(gpus, name, count, expected):
    gpus(count)
    assert resolve_device(name, local_rank=1, local_size=2) == expected


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("gpu", 1, "device='gpu' is unknown; choose auto, cpu or cuda"),
        ("cuda", 0, "no CUDA device is available here; use device='cpu'"),
        ("cuda", 1, "2 ranks need a GPU each and this machine has 1; use tp=1 or device='cpu'"),
    ],
)
def test_device_that_cannot_be_had(gpus, name, count, message):
    gpus(count)
    with pytest.raises(ValueError, match=message):
        resolve_device(name, 0, 2)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_auto_dtype_is_the_checkpoints(name):
    assert resolve_dtype("auto", name, CUDA) == getattr(torch, name)
    assert resolve_dtype(name, "float32", CUDA) == getattr(torch, name)


def test_float16_becomes_bfloat16_on_the_cpu_and_says_so_once():
    devices._say_float16_becomes_bfloat16.cache_clear()
    with pytest.warns(UserWarning, match="float16 on the CPU: computing in bfloat16"):
        assert resolve_dtype("auto", "float16", CPU) == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_dtype("float16", "float32", CPU) == torch.bfloat16


def test_unknown_dtype():
    with pytest.raises(ValueError, match="dtype='int4' is unknown; choose auto, float32"):
        resolve_dtype("int4", "float32", CPU)
