"""What tests of the reader share."""

import torch

from sidewinder.checkpoint.reader import load_shard
from sidewinder.config import load_model_config
from sidewinder.parallel.group import TensorParallel


def load(folder, rank=0, size=1, dtype=torch.float32, **options):
    return load_shard(
        folder, load_model_config(folder), TensorParallel(rank, size), dtype, **options
    )


def assert_same(first, second):
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name
