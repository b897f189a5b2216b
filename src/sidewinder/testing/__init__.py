"""Shared by tests: tiny random checkpoints of every family, ranks as threads, and comparisons.

The checkpoints are transformers' own models with random weights, so that the same folder serves the
oracle and Sidewinder.
"""

from sidewinder.testing.authors import authors_layout
from sidewinder.testing.compare import assert_close, relative_error
from sidewinder.testing.configs import TINY, tiny_config
from sidewinder.testing.models import save_tiny, tiny_oracle
from sidewinder.testing.ranks import run_ranks
from sidewinder.testing.tokens import save_tokenizer

__all__ = [
    "TINY",
    "assert_close",
    "authors_layout",
    "relative_error",
    "run_ranks",
    "save_tiny",
    "save_tokenizer",
    "tiny_config",
    "tiny_oracle",
]
