"""Sidewinder: tensor-parallel inference for selective state-space models."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Before torch is first imported: after a parallel region OpenMP's threads would else spin for
# milliseconds, on the cores that our kernels' threads need next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from sidewinder.llm import LLM, Increment, Metrics, RequestOutput, Score
    from sidewinder.sampling import SamplingParams, StructuredOutput, TokenLogprobs

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "Increment",
    "Metrics",
    "RequestOutput",
    "SamplingParams",
    "Score",
    "StructuredOutput",
    "TokenLogprobs",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: worker processes need none of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    in_sampling = name in ("SamplingParams", "StructuredOutput", "TokenLogprobs")
    return getattr(import_module("sidewinder.sampling" if in_sampling else "sidewinder.llm"), name)
