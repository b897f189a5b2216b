"""Granite-4.0-H (`GraniteMoeHybridForCausalLM`), dense or with experts."""

from sidewinder.models.bamba import Bamba


class GraniteHybrid(Bamba):
    """Bamba with multipliers of embedding, deltas, scores and logits, and mostly no positions;
    some models have experts beside every layer's MLP."""
