"""Zamba2 (`Zamba2ForCausalLM`): Zamba with Mamba-2 mixers, and shared blocks that calls adapt."""

from sidewinder.layers.mamba2 import Mamba2Mixer
from sidewinder.layers.weights import Weights
from sidewinder.models.base import Mixer
from sidewinder.models.zamba import Zamba


class Zamba2(Zamba):
    """Its blocks take turns; each call adds low-rank matrices of its own to their projections."""

    def make_mixers(self, weights: list[Weights]) -> list[Mixer]:
        return [Mamba2Mixer(self.config, self.dims, each, self.collectives) for each in weights]
