"""Granite-4.0-H (`GraniteMoeHybridForCausalLM`), dense or with experts."""

from sidewinder.models.parts import PartStack


class GraniteHybrid(PartStack):
    """Bamba with multipliers of embedding, deltas, scores and logits, and mostly no positions;
    some models have experts beside every layer's MLP."""
