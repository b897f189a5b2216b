"""Falcon-H1 (`FalconH1ForCausalLM`)."""

from sidewinder.models.parts import PartStack


class FalconH1(PartStack):
    """Bamba with a mixer and attention side by side in every layer, and their one delta."""
