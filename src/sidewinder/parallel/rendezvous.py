"""What the ranks of one machine share from the start: memory that nobody else can see."""

import os
import shutil
import tempfile
from pathlib import Path

from sidewinder.collectives.shared_memory import create_segment


class Rendezvous:
    """A file for `torch.distributed.FileStore`, and shared memory, until `close`.

    On Linux it is anonymous memory that the workers inherit, so nothing can be left behind.
    Elsewhere it lies in a private temporary directory.

    Args:
        segment_ranks: if not 0, also a segment of shared memory for collectives of so many ranks.

    Attributes:
        path: what each worker opens.
        segment: file descriptor of the shared memory, or -1.
        fds: file descriptors that a worker must inherit, under the same numbers.
    """

    def __init__(self, segment_ranks: int = 0) -> None:
        self.fds: tuple[int, ...] = ()
        self._folder: str | None = None
        if hasattr(os, "memfd_create"):
            self.fds = (os.memfd_create("sidewinder-rendezvous"),)
            self.path = f"/proc/self/fd/{self.fds[0]}"
        else:
            self._folder = tempfile.mkdtemp(prefix="sidewinder-")
            self.path = str(Path(self._folder) / "store")
        self.segment = create_segment(segment_ranks) if segment_ranks else -1
        if segment_ranks:
            self.fds += (self.segment,)

    def close(self) -> None:
        """Give up the caller's hold; calling twice is fine."""
        for fd in self.fds:
            os.close(fd)
        self.fds = ()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
