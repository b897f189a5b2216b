"""How a token is drawn from logits: what a user asks for, the filters, and each rank's sampler."""

from sidewinder.sampling.params import SamplingParams, TokenLogprobs
from sidewinder.sampling.structured import Constraint, StructuredOutput

__all__ = ["Constraint", "SamplingParams", "StructuredOutput", "TokenLogprobs"]
