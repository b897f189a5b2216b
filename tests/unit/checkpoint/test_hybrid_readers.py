"""Reading config.json of hybrids of Mamba-2 mixers and attention: names old and new, rejections."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sidewinder.bench.shapes import shape_values
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.layers.rotary import Rotary
from sidewinder.model_config import ExpertsConfig, MLPConfig, RotaryConfig, RouterConfig
from sidewinder.testing import TINY

BAMBA = {"model_type": "bamba"}


GRANITE = {"model_type": "granitemoehybrid", "num_local_experts": 0}
EXPERTS = {"model_type": "granitemoehybrid"}


def bamba_values(**overrides):
    """What transformers writes."""
    return AutoConfig.for_model(**(TINY["bamba"] | overrides)).to_dict()


def test_bamba_fields():
    config = parse_model_config(bamba_values(attention_bias=True, time_step_limit=[0.01, math.inf]))
    assert (config.d_inner, config.d_state, config.d_conv, config.n_heads) == (96, 7, 4, 8)
    assert (config.n_groups, config.is_mamba2, config.gated_norm) == (2, True, True)
    assert config.time_step_limit == (0.01, math.inf)
    assert not config.residual_in_fp32
    assert (config.mixer_layers, config.n_mlp_calls) == ((0, 1, 3), 5)
    assert config.mlp == MLPConfig(44, "silu", use_bias=False)
    attention = config.attention
    assert (attention.layers, attention.n_heads, attention.n_kv_heads) == ((2, 4), 8, 4)
    assert (attention.head_dim, attention.scale) == (6, 6**-0.5)
    assert (attention.use_bias, attention.shared) == (True, False)
    assert attention.rotary == RotaryConfig(10000.0, 3)


def test_no_attention_layers_is_what_a_file_means_that_names_none():
    for values in (BAMBA, BAMBA | {"attn_layer_indices": None}, BAMBA | {"attn_layer_indices": []}):
        config = parse_model_config(values)
        assert config.attention is None
        assert config.mixer_layers == tuple(range(32))
        assert config.n_mlp_calls == 32


def test_key_value_heads_absent_and_null():
    def heads(**values):
        return parse_model_config(
            BAMBA | {"attn_layer_indices": [1], "num_attention_heads": 16} | values
        ).attention.n_kv_heads

    assert heads() == 8
    assert heads(num_key_value_heads=None) == 16
    assert heads(num_key_value_heads=2) == 2


@pytest.mark.parametrize(
    "values",
    [
        {"attn_layer_indices": [3, 1]},
        {"layers_block_type": ["mamba", "attention", "mamba", "attention"]},
        {"layer_types": ["linear_attention", "full_attention"] * 2},
        {"attn_layer_indices": [1, 3], "layers_block_type": ["mamba", "attention"] * 2},
    ],
    ids=str,
)
def test_attention_layers_by_older_and_newer_names(values):
    config = parse_model_config(BAMBA | {"num_hidden_layers": 4} | values)
    assert config.attention.layers == (1, 3)
    assert config.mixer_layers == (0, 2)


ROPES = [
    {},
    {"rope_theta": 500.0},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    {"rope_theta": 500.0, "rope_scaling": {"type": "default"}},
    {"rope_parameters": {"rope_theta": 77.0, "partial_rotary_factor": 1.0}},
    {"rope_parameters": {"partial_rotary_factor": 0.26, "rope_type": "default"}, "rope_theta": 9.0},
    {"partial_rotary_factor": 1.0},
    {"head_dim": 10, "rope_theta": 20.0},
]


@pytest.mark.parametrize("rope", ROPES, ids=str)
def test_rotary_is_transformers_own(rope):
    """Angles of the model that transformers builds from the same file."""
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(TINY["bamba"] | rope)))
    ours = parse_model_config(TINY["bamba"] | rope).attention.rotary
    frequencies = Rotary(ours, torch.device("cpu")).frequencies
    torch.testing.assert_close(frequencies, theirs.model.rotary_emb.inv_freq, rtol=0, atol=0)


def test_a_published_shape_keeps_its_kinds_of_layers_when_it_is_cut():
    def cut(n_layers, **values):
        return parse_model_config(shape_values("bamba-9b", n_layers) | values)

    assert cut(None).attention.layers == (9, 18, 27)
    assert cut(12).attention.layers == (9,)
    assert cut(4).attention is None


def test_granite_fields():
    values = AutoConfig.for_model(**TINY["granitemoehybrid"]).to_dict()
    config = parse_model_config(values)
    assert (config.d_inner, config.d_state, config.n_heads, config.n_groups) == (96, 6, 8, 1)
    assert config.mlp == MLPConfig(36, "silu")
    assert (config.mixer_layers, config.attention.layers) == ((0, 1, 3), (2,))
    assert (config.attention.scale, config.attention.rotary) == (0.3, None)
    assert (config.embedding_multiplier, config.residual_multiplier) == (1.5, 0.5)
    assert config.logits_divisor == 3.0
    assert config.norm_eps == 1e-6
    # Key-value heads are as many as queries where the file does not say.
    attends = GRANITE | {"layer_types": ["attention"] + ["mamba"] * 31}
    assert parse_model_config(attends).attention.n_kv_heads == 32


def test_granite_with_experts():
    config = parse_model_config(AutoConfig.for_model(**TINY["granite_experts"]).to_dict())
    assert (config.mlp, config.n_mlp_calls, config.expert_layers) == (None, 0, (0, 1, 2, 3))
    assert config.experts == ExpertsConfig(
        layers=(0, 1, 2, 3),
        n_experts=5,
        d_ff=18,
        router=RouterConfig(n_chosen=2, scores="softmax", normalised=True),
        activation="silu",
        shared_d_ff=36,
    )


@pytest.mark.parametrize("older", [True, False])
def test_granite_layers_by_older_and_newer_names(older):
    kinds = ["mamba", "attention"] if older else ["linear_attention", "full_attention"]
    name = "layers_block_type" if older else "layer_types"
    config = parse_model_config(GRANITE | {"num_hidden_layers": 4, name: kinds * 2})
    assert config.attention.layers == (1, 3)


def test_granite_turns_whole_heads_where_positions_are_rotary():
    def rotary(**values):
        kinds = {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"], "hidden_size": 256}
        return parse_model_config(GRANITE | kinds | values).attention.rotary

    assert rotary() is None
    assert rotary(position_embedding_type="nope", rope_theta=5.0) is None
    assert rotary(position_embedding_type="rope") == RotaryConfig(10000.0, 8)
    older = rotary(position_embedding_type="rope", rope_theta=5.0, rope_scaling=None)
    assert older == RotaryConfig(5.0, 8)


ATTENDS = BAMBA | {"attn_layer_indices": [1]}
ROPE = GRANITE | {"position_embedding_type": "rope", "layer_types": ["attention"] + ["mamba"] * 31}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (BAMBA | {"hidden_act": "gelu"}, "hidden_act='gelu'.*silu"),
        (BAMBA | {"mamba_n_heads": 100}, "mamba_n_heads=100 does not divide"),
        (BAMBA | {"mamba_d_head": 32}, "mamba_n_heads .128. times mamba_d_head .32."),
        (BAMBA | {"mamba_n_groups": 3}, "mamba_n_groups=3 does not divide mamba_n_heads .128."),
        (BAMBA | {"mamba_d_conv": 1}, "mamba_d_conv=1 .*at least 2"),
        (BAMBA | {"time_step_limit": [2.0, 1.0]}, "low <= high"),
        (BAMBA | {"intermediate_size": 0}, "intermediate_size=0"),
        (BAMBA | {"mlp_bias": 1}, "mlp_bias=1 is not true or false"),
        (BAMBA | {"attn_layer_indices": [32]}, r"attn_layer_indices=\[32\] .*0 to 31"),
        (BAMBA | {"attn_layer_indices": 3}, "attn_layer_indices=3 must list"),
        (BAMBA | {"attn_layer_indices": [True]}, "must list"),
        (BAMBA | {"layer_types": ["mamba"]}, "layer_types lists 1 layers instead of 32"),
        (BAMBA | {"layer_types": ["moe"] * 32}, "layer_types=.*may only list mamba.*attention"),
        (BAMBA | {"attn_layer_indices": list(range(32))}, "every layer attends"),
        (
            BAMBA | {"attn_layer_indices": [2], "layer_types": ["attention"] + ["mamba"] * 31},
            r"layer_types says that layers \[0\] attend, .*\[2\]",
        ),
        (ATTENDS | {"num_attention_heads": 33}, "num_attention_heads=33 does not divide hidden"),
        (ATTENDS | {"num_key_value_heads": 5}, "num_key_value_heads=5 does not divide"),
        (ATTENDS | {"head_dim": 0}, "head_dim=0"),
        (ATTENDS | {"rope_theta": 0}, "rope_theta=0.0 is not a positive"),
        (ATTENDS | {"rope_parameters": 3}, "rope_parameters=3 is not an object"),
        (
            ATTENDS | {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
            "rope_parameters: rope_type='yarn' is not supported; supported: default",
        ),
        (
            ATTENDS | {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling: type='linear' is not supported",
        ),
        (
            ATTENDS | {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}},
            "full_attention.*one set",
        ),
        (
            ATTENDS | {"rope_parameters": {"partial_rotary_factor": 1.5}},
            "partial_rotary_factor=1.5 of heads of 128 rotates 192 channels",
        ),
        (ATTENDS | {"head_dim": 1}, "rotates 0 channels"),
        (ATTENDS | {"num_attention_heads": 4}, "num_key_value_heads is missing.*8, does not"),
        (EXPERTS | {"num_experts_per_tok": 9}, "num_experts_per_tok=9 is more than the 8 experts"),
        (EXPERTS | {"num_experts_per_tok": 0}, "num_experts_per_tok=0"),
        (EXPERTS | {"intermediate_size": 0}, "intermediate_size=0"),
        (EXPERTS | {"num_local_experts": -1}, "num_local_experts=-1"),
        (GRANITE | {"layer_types": ["attention"] * 32}, "every layer attends"),
        (GRANITE | {"position_embedding_type": "alibi"}, "'alibi' is not supported.*rope, nope"),
        (GRANITE | {"residual_multiplier": 0}, "residual_multiplier=0.0 is not a positive"),
        (GRANITE | {"residual_multiplier": 1e-30}, "residual_multiplier=1e-30 is not between"),
        (GRANITE | {"residual_multiplier": 1e-200}, "residual_multiplier=1e-200 is not between"),
        (GRANITE | {"residual_multiplier": 1e200}, r"=1e\+200 is not between 1e-06 and 1000000"),
        (GRANITE | {"logits_scaling": -1}, "logits_scaling=-1.0 is not a positive"),
        (GRANITE | {"shared_intermediate_size": 0}, "shared_intermediate_size=0"),
        (ROPE | {"attention_multiplier": "x"}, "attention_multiplier='x' is not a number"),
        (
            ROPE | {"rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.5}},
            "turns 64 of a head's 128 channels",
        ),
        (ROPE | {"rope_parameters": {"rope_type": "llama3"}}, "rope_type='llama3' is not"),
    ],
    ids=str,
)
def test_rejects(values, words):
    with pytest.raises(ValueError, match=f"(?s)config.json: .*{words}"):
        parse_model_config(values)
