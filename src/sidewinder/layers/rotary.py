"""Rotary position embeddings (Su et al. 2021): a head's first channels turn with the position.

Of the first `2 n` channels, `j` and `j + n` are a pair; at position `p` it is turned by the angle
`p * theta ** (-2 j / width)`. Scores of turned queries and keys depend on the difference of their
positions only. Keys are turned before they are stored, by their places in the text, so that stored
keys serve whoever reads the same beginning.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sidewinder.model_config import RotaryConfig
from sidewinder.ops.rotary import rotary


@dataclass(frozen=True)
class Rotation:
    """How a step's rows turn: `ops.rotary`'s positions, int64 `[T]`, and frequencies, float32
    `[n]`."""

    positions: Tensor
    frequencies: Tensor

    def turn(self, q: Tensor, k: Tensor) -> None:
        """Turn `q` `[T, H, E]` and `k` `[T, kv_heads, E]` in place."""
        rotary(q, k, self.positions, self.frequencies)


class Rotary:
    """The angles of a model.

    Args:
        config: base and width.
        device: of the batches.
    """

    def __init__(self, config: RotaryConfig, device: torch.device) -> None:
        # In float32 from here on, as the models were trained: more digits would be other angles.
        exponents = torch.arange(0, config.width, 2, dtype=torch.float32) / config.width
        self.frequencies = (1.0 / config.theta**exponents).to(device)

    def at(self, positions: Tensor) -> Rotation:
        """The rotation of rows at `positions`, int64 `[T]`."""
        return Rotation(positions, self.frequencies)
