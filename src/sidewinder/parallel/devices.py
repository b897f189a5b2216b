"""Where a rank computes, and in which dtype."""

import functools
import os
import warnings

import torch

SHARE_VARIABLE = "SIDEWINDER_SHARE_GPU"
"""Set to 1, it lets several ranks compute on one GPU: to test what they say to each other."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """The device of one rank.

    Args:
        name: "auto" (CUDA if this machine has a GPU for each rank, else the CPU), "cpu" or "cuda".
        local_rank: the rank's index among the ranks of this machine; it picks the GPU.
        local_size: how many ranks run on this machine.

    Raises:
        ValueError: if the name is unknown, or CUDA is asked for and there are too few GPUs.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={name!r} is unknown; choose auto, cpu or cuda")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and gpus < local_size):
        return torch.device("cpu")
    if gpus == 0:
        raise ValueError("device='cuda': no CUDA device is available here; use device='cpu'")
    if gpus < local_size and not shares_gpus(local_size):
        raise ValueError(
            f"device='cuda': {local_size} ranks need a GPU each and this machine has {gpus}; "
            f"use tp={gpus} or device='cpu'"
        )
    return torch.device("cuda", local_rank % gpus)


def shares_gpus(local_size: int) -> bool:
    """Whether `local_size` ranks are to share fewer GPUs: slow, and only where it is asked for."""
    asked = os.environ.get(SHARE_VARIABLE) == "1"
    return asked and torch.cuda.device_count() < local_size


def resolve_dtype(name: str, checkpoint: str, device: torch.device) -> torch.dtype:
    """The dtype of weights and activations.

    Args:
        name: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        checkpoint: the checkpoint's own dtype, one of the same three.
        device: float16 becomes bfloat16 on the CPU, which computes it no faster; said once.

    Raises:
        ValueError: if a name is unknown.
    """
    wanted = checkpoint if name == "auto" else name
    if wanted not in DTYPES:
        raise ValueError(f"dtype={wanted!r} is unknown; choose auto, {', '.join(DTYPES)}")
    if wanted == "float16" and device.type == "cpu":
        _say_float16_becomes_bfloat16()
        wanted = "bfloat16"
    return DTYPES[wanted]


@functools.cache
def _say_float16_becomes_bfloat16() -> None:
    warnings.warn("float16 on the CPU: computing in bfloat16 instead", stacklevel=3)


def torch_device(name: str) -> torch.device:
    """The device of that name; "cuda" is this process's current GPU."""
    if name == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)
