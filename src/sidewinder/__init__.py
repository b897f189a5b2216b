"""Sidewinder: tensor-parallel inference for selective state-space models."""

__version__ = "0.1.0"

from sidewinder.llm import LLM, Increment, Metrics, RequestOutput, Score
from sidewinder.sampling import SamplingParams, TokenLogprobs

__all__ = [
    "LLM",
    "Increment",
    "Metrics",
    "RequestOutput",
    "SamplingParams",
    "Score",
    "TokenLogprobs",
    "__version__",
]
