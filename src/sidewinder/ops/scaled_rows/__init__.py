"""Rows times a factor each."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.scaled_rows import reference

scaled_rows = Operator(
    "scaled_rows",
    reference=reference.scaled_rows,
    torch=reference.scaled_rows,
    triton="sidewinder.ops.scaled_rows.triton:scaled_rows",
)
"""Each row times its own factor."""
