"""Attention of single tokens over keys and values in pages."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.paged_attention import reference, vectorized

paged_attention = Operator(
    "paged_attention",
    reference=reference.paged_attention,
    torch=vectorized.paged_attention,
    triton="sidewinder.ops.paged_attention.triton:paged_attention",
)
