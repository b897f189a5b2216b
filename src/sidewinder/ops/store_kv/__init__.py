"""Storing a step's keys and values into pages."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.store_kv import reference, vectorized

store_kv = Operator(
    "store_kv",
    reference=reference.store_kv,
    torch=vectorized.store_kv,
    triton="sidewinder.ops.store_kv.triton:store_kv",
)
