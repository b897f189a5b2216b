"""Nemotron-H and Nemotron-3 (`NemotronHForCausalLM`), dense or with experts."""

from sidewinder.models.parts import PartStack


class NemotronH(PartStack):
    """Bamba with one part a layer: a mixer, attention without positions, an ungated MLP, or ungated
    experts."""
