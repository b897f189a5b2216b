"""Granite-4.0-H without experts (`GraniteMoeHybridForCausalLM`, `num_local_experts` 0)."""

from sidewinder.models.bamba import Bamba


class GraniteHybrid(Bamba):
    """Bamba with multipliers of embedding, deltas, scores and logits, and mostly no positions."""
