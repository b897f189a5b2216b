"""Nemotron-H without experts (`NemotronHForCausalLM`)."""

from sidewinder.models.bamba import Bamba


class NemotronH(Bamba):
    """Bamba with one part a layer: a mixer, attention without positions, or an ungated MLP."""
