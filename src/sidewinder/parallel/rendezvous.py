"""Where the ranks of one machine find each other: a file that nobody else can see."""

import os
import shutil
import tempfile
from pathlib import Path


class Rendezvous:
    """A file for `torch.distributed.FileStore`, until `close`.

    On Linux it is anonymous memory that the workers inherit, so nothing can be left behind.
    Elsewhere it lies in a private temporary directory.

    Attributes:
        path: what each worker opens.
        fds: file descriptors that a worker must inherit, under the same numbers.
    """

    def __init__(self) -> None:
        self.fds: tuple[int, ...] = ()
        self._folder: str | None = None
        if hasattr(os, "memfd_create"):
            self.fds = (os.memfd_create("sidewinder-rendezvous"),)
            self.path = f"/proc/self/fd/{self.fds[0]}"
        else:
            self._folder = tempfile.mkdtemp(prefix="sidewinder-")
            self.path = str(Path(self._folder) / "store")

    def close(self) -> None:
        """Give up the caller's hold; calling twice is fine."""
        for fd in self.fds:
            os.close(fd)
        self.fds = ()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
