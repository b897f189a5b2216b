"""Memory of native operators' results: torch's, or a workspace's while a step is recorded.

A recorded step writes to the same addresses whenever it is repeated (`engine/recorded.py`), so its
results must not lie in memory that torch gives to somebody else afterwards.
"""

import math
import mmap
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

CPU = torch.device("cpu")
UNSEEN = 3
"""References to a block that no tensor sees: the list's, the loop's and that of the question."""


class Workspace:
    """Blocks of memory that stay; each is given again once no tensor sees it."""

    def __init__(self) -> None:
        self._blocks: list[mmap.mmap] = []

    @property
    def nbytes(self) -> int:
        return sum(len(block) for block in self._blocks)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor that was not written yet, in the smallest block that is free and holds it."""
        count = math.prod(shape)
        if count == 0:
            return torch.empty(*shape, dtype=dtype)
        n_bytes = count * dtype.itemsize
        fitting = [
            block
            for block in self._blocks
            if len(block) >= n_bytes and sys.getrefcount(block) == UNSEEN
        ]
        if fitting:
            block = min(fitting, key=len)
        else:
            block = mmap.mmap(-1, n_bytes)
            self._blocks.append(block)
        return torch.frombuffer(block, dtype=dtype, count=count).view(*shape)


class _Current(threading.local):
    workspace: Workspace | None = None


_current = _Current()


@contextmanager
def results_in(workspace: Workspace) -> Iterator[Workspace]:
    """This thread's results of native operators lie in `workspace` inside the `with` block."""
    assert _current.workspace is None, "one workspace at a time"
    _current.workspace = workspace
    try:
        yield workspace
    finally:
        _current.workspace = None


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """A tensor that was not written yet, for the results of operators; on CPUs, of native ones."""
    workspace = _current.workspace
    if workspace is None:
        return torch.empty(*shape, dtype=dtype, device=device)
    assert device == CPU, "only native operators are recorded"
    return workspace.empty(shape, dtype)
