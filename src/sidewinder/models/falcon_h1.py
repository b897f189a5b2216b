"""Falcon-H1 (`FalconH1ForCausalLM`)."""

from sidewinder.models.bamba import Bamba


class FalconH1(Bamba):
    """Bamba with a mixer and attention side by side in every layer, and their one delta."""
