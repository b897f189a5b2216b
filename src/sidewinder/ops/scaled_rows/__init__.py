"""Rows over the root of their mean square, which several ranks have summed."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.scaled_rows import reference

scaled_rows = Operator(
    "scaled_rows",
    reference=reference.scaled_rows,
    torch=reference.scaled_rows,
    triton="sidewinder.ops.scaled_rows.triton:scaled_rows",
)
"""Each row over the root of its own mean square."""
