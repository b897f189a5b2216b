"""Values as callers have them, NumPy's, pathlib's and torch's too, as plain Python ones."""

import numbers
import os
from typing import Any


def plain(value: Any) -> Any:
    """`value` as Python's own int, float or str where it is a number, a path or a torch dtype
    (by its name); anything else as it is."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if (type(value).__module__, type(value).__name__) == ("torch", "dtype"):
        return str(value).removeprefix("torch.")
    return value


def make_plain(options: Any) -> None:
    """Make every field of a dataclass, frozen or not, `plain`."""
    for name in options.__dataclass_fields__:
        object.__setattr__(options, name, plain(getattr(options, name)))
