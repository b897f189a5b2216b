"""Penalties on logits of tokens that were seen, as transformers and vLLM define them."""

import torch
from torch import Tensor


def repetition_penalty(logits: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of seen tokens, `[n]`, by `penalty`."""
    return torch.where(logits > 0, logits / penalty, logits * penalty)


def output_penalties(logits: Tensor, counts: Tensor, presence: float, frequency: float) -> Tensor:
    """Subtract `frequency * counts + presence * (counts > 0)`; `counts` `[n]` of output tokens."""
    return logits - frequency * counts - presence * (counts > 0)
