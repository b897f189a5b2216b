"""Sum of two results, row by row."""

from sidewinder.ops.add_rows import reference
from sidewinder.ops.dispatch import Operator

add_rows = Operator(
    "add_rows",
    reference=reference.add_rows,
    torch=reference.add_rows,
    triton="sidewinder.ops.add_rows.triton:add_rows",
)
