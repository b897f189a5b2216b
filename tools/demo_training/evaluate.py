"""Held-out bits per byte, the ``xz -9`` figure for the same text, and samples."""

import lzma
import math
from typing import Any

import torch
import torch.nn.functional as F

from .corpus import BOS
from .forward import logits


def xz_bits_per_byte(text: str) -> float:
    """What ``xz -9`` needs for the same text, container included."""
    raw = text.encode()
    return 8 * len(lzma.compress(raw, preset=9)) / len(raw)


@torch.no_grad()
def bits_per_byte(model: Any, tokenizer: Any, text: str, window: int = 512) -> float:
    """Mean bits per byte of ``text``, every token scored once.

    Windows of ``window`` tokens begin with BOS and overlap by half, so each token but the first
    ones sees at least ``window / 2`` tokens before it. No text outside its window helps a token.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    nats, stride = 0.0, window // 2
    for start in range(0, max(1, len(ids) - stride), stride):
        targets = torch.tensor(ids[start : start + window])
        inputs = torch.cat([torch.tensor([BOS]), targets[:-1]])
        fresh = stride if start else 0
        scores = logits(model, inputs[None])[0, fresh:]
        nats += F.cross_entropy(scores, targets[fresh:], reduction="sum").item()
    return nats / math.log(2) / len(text.encode())
