"""Places to write, looked at before the work whose results go there."""

import os
import tempfile
from pathlib import Path


def check_folder(folder: Path, option: str) -> None:
    """Make `folder`, and see that files can be made in it; none is left there.

    Args:
        folder: with its parents.
        option: what the user calls it, for the message.

    Raises:
        ValueError: if it is no folder, cannot be made, or takes no files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        # What mkdir says of a file in the way ("File exists") does not say what is wrong.
        reason = "a file is in the way" if _is_blocked(folder) else error.strerror
        raise ValueError(
            f"{option} {folder} cannot be written to ({reason}); name a folder that can"
        ) from error


def check_file(file: Path, option: str) -> None:
    """See that `file` can be written, its folder made; an existing one stays as it is.

    Raises:
        ValueError: if it cannot.
    """
    if file.is_dir():
        raise ValueError(f"{option} {file} is a folder; name a file in it")
    if not file.exists():
        check_folder(file.parent, f"{option} {file}: the folder")
    elif not os.access(file, os.W_OK):
        raise ValueError(f"{option} {file} cannot be written to; name another file")


def _is_blocked(folder: Path) -> bool:
    """Whether the nearest thing that exists on the way to `folder` is not a folder."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    return not there.is_dir()
