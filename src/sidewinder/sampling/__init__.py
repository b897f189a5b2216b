"""How a token is drawn from logits: what a user asks for, the filters, and each rank's sampler."""

from sidewinder.sampling.params import SamplingParams, TokenLogprobs

__all__ = ["SamplingParams", "TokenLogprobs"]
