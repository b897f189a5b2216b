"""Processes that end in time, with all that they have started, and what they leave."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

GONE_S = 5.0
"""What a process that was killed may take to be gone; a driver may hold it for longer."""


@dataclass(frozen=True)
class Ended:
    """What a process left.

    Attributes:
        status: its exit status; None if it was ended when its time was over.
        out, err: what it wrote.
    """

    status: int | None
    out: str
    err: str


def run_for(command: Sequence[str], seconds: float, cwd: Path | None = None) -> Ended:
    """Run a command for so long at most, in a process group of its own, which is then ended.

    It writes to files: who is left of what it started and holds a pipe would be waited for.
    """
    with TemporaryFile() as out, TemporaryFile() as err:
        process = subprocess.Popen(command, cwd=cwd, stdout=out, stderr=err, start_new_session=True)
        status = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GONE_S)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Ended(status, *texts)


def write_json(file: Path, content: object) -> None:
    """Write a file as a whole, or not at all, whenever the process is ended."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(file)
