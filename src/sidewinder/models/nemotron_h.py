"""Nemotron-H and Nemotron-3 (`NemotronHForCausalLM`), dense or with experts."""

from sidewinder.models.bamba import Bamba


class NemotronH(Bamba):
    """Bamba with one part a layer: a mixer, attention without positions, an ungated MLP, or ungated
    experts."""
