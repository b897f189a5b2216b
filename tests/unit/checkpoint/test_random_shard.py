"""Random weights: one model, however it is split."""

import pytest
import torch

from sidewinder.checkpoint.random import BLOCK_ROWS, random_shard
from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.plan import is_float32, parameter_shapes, sharding_plan
from sidewinder.sharding.slicing import reassemble
from sidewinder.testing import TINY, tiny_config


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("family", TINY)
def test_shards_of_any_size_belong_to_one_model(family, size):
    config = tiny_config(family, vocab_size=2 * BLOCK_ROWS + 7)
    whole = random_shard(config, TensorParallel(), torch.float32)
    shards = [
        random_shard(config, TensorParallel(rank, size), torch.float32) for rank in range(size)
    ]
    for name, rule in sharding_plan(config, size).items():
        assert torch.equal(reassemble(rule, [part[name] for part in shards]), whole[name]), name


@pytest.mark.parametrize("family", TINY)
def test_names_shapes_dtypes_and_scales(family):
    config = tiny_config(family, tie_word_embeddings=False)
    weights = random_shard(config, TensorParallel(), torch.bfloat16)
    assert {name: tuple(value.shape) for name, value in weights.items()} == parameter_shapes(config)
    for name, value in weights.items():
        assert value.dtype == (torch.float32 if is_float32(name) else torch.bfloat16)
        assert value.isfinite().all()
        assert value.any(), name
    a_log = weights["layers.0.mixer.A_log"]
    assert a_log.min() >= 0
    assert a_log.max() <= 2.78
    bias = weights["layers.0.mixer.dt_bias" if config.is_mamba2 else "layers.0.mixer.dt_proj.bias"]
    steps = torch.nn.functional.softplus(bias)
    assert steps.min() > 0.9e-3
    assert steps.max() < 0.11


def test_seed_decides():
    config = tiny_config("mamba")
    first, same, other = (
        random_shard(config, TensorParallel(), torch.float32, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first["embedding.weight"], same["embedding.weight"])
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
    assert not torch.equal(
        first["layers.0.mixer.in_proj.weight"], first["layers.1.mixer.in_proj.weight"]
    )
