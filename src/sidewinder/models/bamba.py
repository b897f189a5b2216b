"""Bamba (`BambaForCausalLM`)."""

from sidewinder.models.parts import PartStack


class Bamba(PartStack):
    """Layers of a Mamba-2 mixer or attention with rotary positions, each followed by an MLP."""
