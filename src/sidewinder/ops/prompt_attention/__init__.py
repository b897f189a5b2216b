"""Attention of prompts, whole or in chunks, over keys and values in pages."""

import torch

from sidewinder.ops import tuning
from sidewinder.ops.dispatch import Operator
from sidewinder.ops.launching import serves_any_device
from sidewinder.ops.prompt_attention import reference, vectorized

prompt_attention = Operator(
    "prompt_attention",
    reference=reference.prompt_attention,
    torch=vectorized.prompt_attention,
    triton="sidewinder.ops.prompt_attention.triton:prompt_attention",
)


def reads_lengths(dtype: torch.dtype) -> bool:
    """Whether Triton's takes a `PromptIndex` in `dtype`: matrix units do not multiply float32
    exactly, and torch's attention needs lengths on the host."""
    return dtype.itemsize == 2


def was_timed() -> bool:
    """Whether Triton's kernels have run on this GPU, as far as tuned block sizes tell (or there is
    none, and they are interpreted or only recorded). None is known to have: until then they are in
    no step by default. Those of fixed shapes have no other operator beside them that could have
    been the fastest."""
    return serves_any_device() or tuning.was_measured("prompt_attention_fixed")
