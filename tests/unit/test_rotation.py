"""The residual stream rotated: an orthogonal matrix, and logits that stay what they were."""

import pytest
import torch

from sidewinder.checkpoint.random import random_shard
from sidewinder.checkpoint.reader import load_shard
from sidewinder.config import load_model_config
from sidewinder.models.registry import build_model
from sidewinder.rotation import block_hadamard, fold_rotation
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import TINY, assert_close, run_ranks, save_tiny, tiny_config

CASES = [
    ("mamba", {}),
    ("mamba", {"hidden_size": 13, "use_bias": True, "tie_word_embeddings": False}),
    ("falcon_mamba", {}),
    ("falcon_mamba", {"tie_word_embeddings": True, "hidden_size": 24}),
    ("mamba2", {"n_groups": 1, "use_bias": True}),
    ("mamba2", {"tie_word_embeddings": True, "hidden_size": 12, "num_heads": 4}),
    ("zamba", {}),
    ("zamba", {"tie_word_embeddings": False, "mamba_proj_bias": True, "hidden_size": 40}),
    ("zamba2", {"add_bias_linear": True, "use_shared_attention_adapter": True}),
    ("bamba", {"attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True}),
    ("granitemoehybrid", {"attention_bias": True, "mamba_proj_bias": True}),
    ("granitemoehybrid", {"tie_word_embeddings": False}),
    ("nemotron_h", {"mlp_bias": True, "use_bias": True}),
    ("falcon_h1", {"mlp_bias": True, "attention_bias": True, "tie_word_embeddings": True}),
    ("falcon_h1", {"mamba_proj_bias": True, "projectors_bias": True, "mamba_rms_norm": True}),
    ("bamba", {"tie_word_embeddings": True, "hidden_size": 24, "mamba_n_groups": 1}),
    ("nemotron_experts", {"mlp_bias": True, "moe_latent_size": 12}),
    ("jamba", {"mamba_proj_bias": True}),
    ("jamba_experts", {"tie_word_embeddings": True, "hidden_size": 24}),
]


def matrix(width):
    return block_hadamard(width)(torch.eye(width))


@pytest.mark.parametrize("width", [1, 13, 24, 64, 160, 192])
def test_the_matrix_is_orthogonal_and_spreads_every_channel(width):
    rotation = matrix(width)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(width))
    assert rotation.abs().max() <= (2 / width) ** 0.5 + 1e-6


def test_the_rotation_is_the_same_every_time_but_not_trivial():
    assert torch.equal(matrix(32), matrix(32))
    assert not torch.equal(matrix(32), block_hadamard(32, seed=1)(torch.eye(32)))


def logits(folder, config, size, rotate):
    def rank(tp, c):
        weights = load_shard(folder, config, tp, torch.float32)
        if rotate:
            weights = fold_rotation(weights, config, block_hadamard(config.d_model))
        model = build_model(config, tp, weights, c)
        pool = StatePool(config, LocalDims.of(config, tp), 1, torch.float32, n_pages=1)
        batch = pack([list(range(1, 13))], [0], page_tables=[[0]] if config.attention else None)
        return model.logits(model.forward(batch, pool))

    first, *others = run_ranks(size, rank)
    assert all(torch.equal(first, other) for other in others)
    return first


@pytest.mark.parametrize(("family", "overrides"), CASES, ids=str)
def test_logits_stay_the_same(family, overrides, tmp_path):
    folder = save_tiny(family, tmp_path, **overrides)
    config = load_model_config(folder)
    plain = logits(folder, config, 1, rotate=False)
    for size in (1, 2):
        assert_close(f"rotated, tp={size}", plain, logits(folder, config, size, rotate=True), 1e-4)


@pytest.mark.parametrize("family", TINY)
def test_what_crosses_ranks_is_rotated_and_norms_have_no_gain(family):
    config = tiny_config(family, tie_word_embeddings=True)
    (plain, folded), *_ = run_ranks(1, lambda tp, _: both(config, tp))
    rotation = matrix(config.d_model)
    changed = {name for name in folded if name not in plain or folded[name] is not plain[name]}
    for name in changed:
        if name.endswith(("norm.weight",)):
            assert (folded[name] == 1).all()
    out_proj = f"layers.{config.mixer_layers[-1]}.mixer.out_proj.weight"
    torch.testing.assert_close(folded[out_proj], rotation.T @ plain[out_proj])
    torch.testing.assert_close(folded["embedding.weight"], plain["embedding.weight"] @ rotation)
    assert folded["lm_head.weight"].shape == plain["embedding.weight"].shape
    inner = ("conv.weight", "x_proj.weight", "dt_proj.weight", "A_log", ".D", "mixer.norm.weight")
    assert not any(name.endswith(inner) for name in changed)


def both(config, tp):
    plain = random_shard(config, tp, torch.float32)
    return plain, fold_rotation(plain, config, block_hadamard(config.d_model))


def test_weights_keep_their_dtypes_and_the_originals_are_not_touched():
    config = tiny_config("zamba")

    def rank(tp, _):
        plain = random_shard(config, tp, torch.bfloat16)
        before = {name: weight.clone() for name, weight in plain.items()}
        folded = fold_rotation(plain, config, block_hadamard(config.d_model))
        assert all(torch.equal(before[name], plain[name]) for name in plain)
        assert all(folded[name].dtype == plain[name].dtype for name in plain)
        assert all(weight.is_contiguous() for weight in folded.values())

    run_ranks(1, rank)
