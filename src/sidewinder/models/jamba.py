"""Jamba (`JambaForCausalLM`), with or without experts."""

from collections.abc import Sequence

from sidewinder.layers.mamba1 import Mamba1Mixer
from sidewinder.layers.weights import Weights
from sidewinder.models.parts import PartStack


class Jamba(PartStack):
    """Bamba with Mamba-1 mixers, whose dt, B and C have weighted norms, attention without
    positions, and in some layers experts instead of the MLP."""

    def make_mixers(self, weights: list[Weights]) -> Sequence[Mamba1Mixer]:
        sharers = self.collectives.subgroup(self.dims.x_proj_partition)
        return [
            Mamba1Mixer(self.config, self.dims, each, self.collectives, sharers, self.overlap)
            for each in weights
        ]
