"""Mamba (`MambaForCausalLM`, and the authors' `state-spaces/mamba-*`)."""

from sidewinder.layers.mamba1 import Mamba1Mixer
from sidewinder.layers.weights import Weights
from sidewinder.models.base import Mixer, MixerStack


class Mamba(MixerStack):
    """A stack of Mamba-1 mixers, each with one head."""

    def make_mixers(self, weights: list[Weights]) -> list[Mixer]:
        sharers = self.collectives.subgroup(self.dims.x_proj_partition)
        return [
            Mamba1Mixer(self.config, self.dims, layer, self.collectives, sharers, self.overlap)
            for layer in weights
        ]
