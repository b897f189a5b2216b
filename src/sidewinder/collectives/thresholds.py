"""Up to which size ranks sum everything themselves: measured at start-up, or pinned by a file.

Between two ranks both algorithms move the same bytes, and the one-shot sum is a step shorter; there
is nothing to choose. Among more, a one-shot sum sends each part to every rank, and a two-shot sum
sends stripes, twice. The result has the same bits either way.

On GPUs the one-shot sum is symmetric memory's, and NCCL serves what is larger, at two ranks too.
"""

import json
import statistics
import time
from pathlib import Path

import torch

from sidewinder.collectives.base import Collectives
from sidewinder.collectives.shared_memory import SharedMemoryCollectives
from sidewinder.collectives.symmetric import SymmetricCollectives
from sidewinder.collectives.tcp import TcpCollectives

Tunable = SharedMemoryCollectives | TcpCollectives | SymmetricCollectives

SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10)
GPU_SIZES = (16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
CALLS = 5
MOST_S = 0.3
"""Once so much has been spent, larger sizes are left to the two-shot sum."""
NEVER, ALWAYS = 0, 1 << 62


def use_thresholds(collectives: Collectives, file: str | None) -> None:
    """Set `one_shot_bytes` of a transport that has it; every rank calls at the same time.

    Args:
        collectives: of the whole group; its `path` says afterwards what was chosen.
        file: JSON `{"one_shot_bytes": N}` to use instead of measuring; None measures.

    Raises:
        ValueError: if the file cannot be read or says something else.
    """
    pinned = None if file is None else read_thresholds(file)
    if not isinstance(collectives, Tunable) or not _has_choice(collectives):
        return
    collectives.one_shot_bytes = fit(collectives) if pinned is None else pinned
    how = "fitted" if pinned is None else "pinned"
    collectives.path += f" (one-shot up to {collectives.one_shot_bytes >> 10} KB, {how})"


def _has_choice(collectives: Tunable) -> bool:
    if isinstance(collectives, SymmetricCollectives):
        return collectives.has_choice
    return collectives.tp.size > 2


def read_thresholds(file: str) -> int:
    """`one_shot_bytes` of a file.

    Raises:
        ValueError: if there is none.
    """
    try:
        values = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"thresholds={file!r} is not readable JSON: {error}") from error
    number = values.get("one_shot_bytes") if isinstance(values, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 0 or len(values) > 1:
        raise ValueError(f'{file}: write {{"one_shot_bytes": N}} with a count of bytes')
    return number


def fit(collectives: Tunable) -> int:
    """The largest size up to which the one-shot sum is not slower; 0 if it always is.

    All ranks decide from the same numbers, so they agree.
    """
    best, spent = 0, 0.0
    on_gpu = isinstance(collectives, SymmetricCollectives)
    for size in GPU_SIZES if on_gpu else SIZES:
        one_shot, two_shot = (_seconds(collectives, size, limit) for limit in (ALWAYS, NEVER))
        if one_shot > two_shot:
            break
        best = size
        spent += (CALLS + 1) * (one_shot + two_shot)
        if spent > MOST_S:
            break
    return best


def _seconds(collectives: Tunable, size: int, one_shot_bytes: int) -> float:
    """Median time of a sum: of every call, the slowest rank's."""
    collectives.one_shot_bytes = one_shot_bytes
    device = torch.device("cpu")
    if isinstance(collectives, SymmetricCollectives):
        device = collectives.device
    x = torch.zeros(size // 2, dtype=torch.bfloat16, device=device)
    own = []
    for _ in range(CALLS + 1):
        collectives.barrier()
        _finish(device)
        started = time.perf_counter()
        collectives.all_reduce(x)
        _finish(device)
        own.append(time.perf_counter() - started)
    mine = torch.tensor([own[1:]], dtype=torch.float64, device=device)
    everyone = collectives.all_gather(mine, [CALLS] * collectives.tp.size)
    slowest: list[float] = everyone.view(-1, CALLS).amax(0).tolist()
    return statistics.median(slowest)


def _finish(device: torch.device) -> None:
    """Wait for all that the device was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
