"""A tensor in a weight file, whatever the file's format."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sidewinder.checkpoint.layouts import Shape, View

PLAIN_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Of tensors that hold what they stand for."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: where, its shape, and a view that reads parts of it."""

    file: Path
    shape: Shape
    dtype: torch.dtype
    view: View


def unreadable(file: Path, error: Exception) -> ValueError:
    """What to raise where a library, or the file's end, stopped the reading of `file`."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    # torch's own text advises to run whatever code the file holds.
    if reason.startswith("Weights only load failed"):
        reason = "it is not a pickle of plain tensors"
    return ValueError(
        f"{file} is truncated, corrupt or not a weight file ({reason}); fetch it again"
    )
