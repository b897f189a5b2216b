"""Mamba-2 (`Mamba2ForCausalLM`, and the authors' `state-spaces/mamba2-*`)."""

from sidewinder.layers.mamba2 import Mamba2Mixer
from sidewinder.layers.weights import Weights
from sidewinder.models.base import Mixer, MixerStack


class Mamba2(MixerStack):
    """A stack of Mamba-2 mixers."""

    def make_mixers(self, weights: list[Weights]) -> list[Mixer]:
        return [Mamba2Mixer(self.config, self.dims, layer, self.collectives) for layer in weights]
