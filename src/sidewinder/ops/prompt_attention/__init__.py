"""Attention of prompts, whole or in chunks, over keys and values in pages."""

from sidewinder.ops.dispatch import Operator
from sidewinder.ops.prompt_attention import reference, vectorized

prompt_attention = Operator(
    "prompt_attention",
    reference=reference.prompt_attention,
    torch=vectorized.prompt_attention,
    triton="sidewinder.ops.prompt_attention.triton:prompt_attention",
)
