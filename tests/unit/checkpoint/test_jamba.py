"""Reading config.json of Jamba: which layers attend or have experts, defaults, rejections."""

import pytest
from safetensors.torch import load_file
from transformers import AutoConfig

from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.model_config import ExpertsConfig, MLPConfig, RouterConfig
from sidewinder.testing import TINY

PLAIN = {"model_type": "jamba"}


def test_fields():
    theirs = AutoConfig.for_model(**TINY["jamba_experts"], mamba_proj_bias=True, rms_norm_eps=0.25)
    config = parse_model_config(theirs.to_dict())
    assert (config.d_model, config.n_layers, config.d_inner, config.d_state) == (40, 5, 80, 5)
    assert (config.d_conv, config.dt_rank, config.n_heads, config.n_groups) == (4, 3, 1, 1)
    assert (config.is_mamba2, config.gated_norm, config.residual_in_fp32) == (False, False, False)
    assert (config.use_bias, config.use_conv_bias, config.tie_embeddings) == (True, True, False)
    assert (config.norm_eps, config.mixer_norm_eps) == (0.25, 0.25)
    assert config.mixer_norm_weights
    assert config.attention_layers == (1, 4)
    assert config.mixer_layers == (0, 2, 3)
    attention = config.attention
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (8, 4, 5)
    assert (attention.scale, attention.rotary, attention.use_bias) == (5**-0.5, None, False)
    assert config.mlp == MLPConfig(18, "silu")
    assert config.mlp_layers == (0, 2, 4)
    assert config.experts == ExpertsConfig(
        layers=(1, 3), n_experts=5, d_ff=18, activation="silu", shared_d_ff=0,
        router=RouterConfig(n_chosen=2, scores="softmax", normalised=False),
    )  # fmt: skip


def test_defaults_are_the_classs():
    theirs = parse_model_config(AutoConfig.for_model("jamba").to_dict())
    config = parse_model_config(PLAIN)
    assert config == theirs
    assert (config.d_model, config.dt_rank, config.attention.n_kv_heads) == (4096, 256, 8)
    every = parse_model_config(PLAIN | {"num_key_value_heads": None})
    assert every.attention.n_kv_heads == 32


@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_kinds_of_layers_are_transformers(period):
    values = TINY["jamba_experts"] | {
        "attn_layer_period": period + 1, "attn_layer_offset": period // 2,
        "expert_layer_period": period, "expert_layer_offset": period - 1, "num_hidden_layers": 6,
    }  # fmt: skip
    theirs, config = AutoConfig.for_model(**values), parse_model_config(values)
    attends = [i for i, kind in enumerate(theirs.layers_block_type) if kind == "attention"]
    experts = [i for i, n in enumerate(theirs.layers_num_experts) if n > 1]
    assert list(config.attention_layers) == attends
    assert list(config.expert_layers) == experts
    assert list(config.mlp_layers) == [i for i in range(6) if i not in experts]


def test_one_expert_is_an_mlp():
    config = parse_model_config(PLAIN | {"num_experts": 1, "num_experts_per_tok": 2})
    assert config.experts is None
    assert config.mlp_layers == tuple(range(32))


def test_experts_in_every_layer_leave_no_mlp():
    config = parse_model_config(PLAIN | {"expert_layer_period": 1, "expert_layer_offset": 0})
    assert config.mlp is None
    assert config.expert_layers == tuple(range(32))


def test_layers_that_the_model_is_too_short_for():
    config = parse_model_config(PLAIN | {"num_hidden_layers": 1})
    assert (config.attention, config.experts) == (None, None)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"attn_layer_offset": 8}, "attn_layer_offset=8 must be less than attn_layer_period .8."),
        ({"expert_layer_period": 0}, "expert_layer_period=0 .*at least 1"),
        ({"expert_layer_offset": 2}, "expert_layer_offset=2 must be less than expert_layer_period"),
        ({"attn_layer_period": 1, "attn_layer_offset": 0}, "every layer attends"),
        ({"num_experts": 0}, "num_experts=0 .*at least 1"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok=5 is more than the 4"),
        ({"num_key_value_heads": 5}, "num_key_value_heads=5 does not divide num_attention_heads"),
        ({"num_attention_heads": 24}, "num_attention_heads=24 does not divide hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'.*silu"),
        ({"mamba_d_conv": 1}, "mamba_d_conv=1 .*at least 2"),
    ],
    ids=str,
)
def test_rejections(values, words):
    with pytest.raises(ValueError, match=words):
        parse_model_config(PLAIN | values)


def test_every_expert_is_stored_by_itself(tiny_folder):
    """What transformers writes of one tensor is what published checkpoints have."""
    stored = load_file(tiny_folder("jamba_experts") / "model.safetensors")
    assert "model.layers.1.feed_forward.experts.4.gate_proj.weight" in stored
    assert "model.layers.1.feed_forward.router.weight" in stored
