"""Reading config.json of Nemotron-H: kinds of layers by names old and new, rejections."""

import math

import pytest
from transformers import AutoConfig

from sidewinder.bench.shapes import shape_values
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.model_config import ExpertsConfig, MLPConfig, RouterConfig
from sidewinder.testing import TINY

PATTERN = {"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*"}
LISTED = {"model_type": "nemotron_h"}
EXPERTS = {"model_type": "nemotron_h", "hybrid_override_pattern": "M-ME*E"}


def test_fields():
    theirs = AutoConfig.for_model(**(TINY["nemotron_h"] | {"use_bias": True, "mlp_bias": True}))
    config = parse_model_config(theirs.to_dict())
    assert (config.d_model, config.n_layers, config.d_inner, config.d_state) == (40, 5, 48, 7)
    assert (config.d_conv, config.n_heads, config.n_groups, config.head_dim) == (4, 8, 2, 6)
    assert (config.is_mamba2, config.gated_norm, config.norm_before_gate) == (True, True, False)
    assert (config.use_bias, config.use_conv_bias, config.residual_in_fp32) == (True, True, False)
    assert config.time_step_limit == (0.05, math.inf)
    assert config.norm_eps == 1e-5
    assert config.mlp == MLPConfig(44, "relu2", use_bias=True, gated=False, layers=(2, 4))
    assert (config.mixer_layers, config.attention_layers, config.mlp_layers) == (
        (0, 1), (3,), (2, 4),
    )  # fmt: skip
    assert config.n_mlp_calls == 2
    attention = config.attention
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (8, 4, 6)
    assert (attention.scale, attention.rotary, attention.use_bias) == (6**-0.5, None, False)


@pytest.mark.parametrize(
    "values",
    [
        {"hybrid_override_pattern": "M*-M", "num_hidden_layers": 4},
        {"layers_block_type": ["mamba", "attention", "mlp", "mamba"]},
        {"layer_types": ["linear_attention", "full_attention", "mlp", "linear_attention"]},
        {
            "hybrid_override_pattern": "M*-M",
            "layers_block_type": ["linear_attention", "attention", "mlp", "mamba"],
        },
    ],
    ids=str,
)
def test_kinds_of_layers_by_older_and_newer_names(values):
    config = parse_model_config(LISTED | values)
    assert (config.mixer_layers, config.attention_layers, config.mlp_layers) == ((0, 3), (1,), (2,))


def test_experts():
    theirs = AutoConfig.for_model(
        **(TINY["nemotron_experts"] | {"n_group": 3, "topk_group": 2, "norm_topk_prob": False}),
        mlp_bias=True,
    )
    config = parse_model_config(theirs.to_dict())
    assert (config.mixer_layers, config.expert_layers, config.mlp) == ((0, 3), (1, 4), None)
    assert config.experts == ExpertsConfig(
        layers=(1, 4),
        n_experts=6,
        d_ff=10,
        router=RouterConfig(
            n_chosen=2, scores="sigmoid", has_bias=True, normalised=False, scale=2.5, n_groups=3,
            n_groups_chosen=2,
        ),
        activation="relu2",
        gated=False,
        shared_d_ff=21,
        shared_bias=True,
    )  # fmt: skip


@pytest.mark.parametrize("biased", [True, False])
def test_experts_of_a_narrower_stream(biased):
    values = EXPERTS | {"moe_latent_size": 8, "mlp_bias": biased}
    theirs = AutoConfig.for_model(**values)
    experts = parse_model_config(theirs.to_dict()).experts
    assert (experts.d_latent, experts.latent_bias) == (8, biased)
    plain = parse_model_config(EXPERTS | {"moe_latent_size": None, "mlp_bias": biased}).experts
    assert (plain.d_latent, plain.latent_bias) == (0, False)


def test_experts_may_be_counted_by_their_other_name():
    values = EXPERTS | {"n_routed_experts": 4, "num_local_experts": 16}
    theirs = AutoConfig.for_model(**values)
    assert parse_model_config(values).experts.n_experts == theirs.n_routed_experts == 16


def test_older_keys_go_first_as_in_transformers():
    older = {
        "mamba_n_groups": 4, "mamba_d_conv": 3, "mamba_dt_min": 0.25, "mamba_conv_bias": False,
        "n_groups": 2, "conv_kernel": 2, "time_step_min": 0.5, "use_conv_bias": True,
    }  # fmt: skip
    theirs = AutoConfig.for_model(**(PATTERN | older))
    config = parse_model_config(PATTERN | older)
    assert config.n_groups == theirs.n_groups == 4
    assert config.d_conv == theirs.conv_kernel == 3
    assert config.time_step_limit[0] == theirs.time_step_min == 0.25
    assert config.use_conv_bias is theirs.use_conv_bias is False


def test_a_model_may_lack_attention_or_mlps():
    config = parse_model_config(LISTED | {"hybrid_override_pattern": "MM"})
    assert (config.attention, config.mlp, config.mixer_layers) == (None, None, (0, 1))
    assert config.n_mlp_calls == 0


def test_what_transformers_ignores_is_ignored():
    ignored = {
        "residual_in_fp32": True, "attention_bias": True, "mamba_proj_bias": True, "expand": 7,
        "time_step_limit": [0.1, 0.2], "sliding_window": 5, "n_routed_experts": 64,
        "rescale_prenorm_residual": False, "time_step_max": 0.5, "chunk_size": 16,
    }  # fmt: skip
    assert parse_model_config(PATTERN | ignored) == parse_model_config(PATTERN)


def test_a_published_shape_keeps_its_kinds_of_layers_when_it_is_cut():
    config = parse_model_config(shape_values("nemotron-h-8b", 9))
    assert (config.n_layers, config.attention.layers) == (9, (7,))
    assert (config.mixer_layers, config.mlp_layers) == ((0, 2, 4, 6), (1, 3, 5, 8))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (LISTED, "hybrid_override_pattern or layers_block_type must say what each layer is"),
        (EXPERTS | {"moe_latent_size": 0}, "moe_latent_size=0 is not an integer of at least 1"),
        (EXPERTS | {"num_experts_per_tok": 9}, "num_experts_per_tok=9 is more than the 8 experts"),
        (EXPERTS | {"n_group": 3}, "n_group=3 does not divide n_routed_experts .8."),
        (EXPERTS | {"n_group": 8}, "n_group=8 leaves groups of 1 experts; 2 are needed"),
        (EXPERTS | {"topk_group": 2}, "topk_group=2 is more than the 1 groups"),
        (
            EXPERTS | {"n_group": 4, "num_experts_per_tok": 3},
            "num_experts_per_tok=3 is more than the 2 experts of topk_group=1 groups",
        ),
        (EXPERTS | {"routed_scaling_factor": 0}, "routed_scaling_factor=0.0 is not a positive"),
        (EXPERTS | {"mlp_hidden_act": "silu"}, "mlp_hidden_act='silu' .*supported: relu2"),
        (LISTED | {"hybrid_override_pattern": "M|M"}, r"='M\|M' may only list M, \*, -, E"),
        (LISTED | {"hybrid_override_pattern": ["M"]}, r"hybrid_override_pattern=\['M'\] may only"),
        (LISTED | {"hybrid_override_pattern": ""}, "hybrid_override_pattern='' .* at least one"),
        (LISTED | {"layers_block_type": "M"}, "layers_block_type='M' may only list mamba, .*mlp"),
        (LISTED | {"layer_types": [["mamba"]]}, "layer_types=.*may only list"),
        (LISTED | {"hybrid_override_pattern": "-*"}, "at least one Mamba-2 layer"),
        (PATTERN | {"layer_types": ["mamba"]}, "layer_types lists other layers than"),
        (PATTERN | {"num_hidden_layers": 3}, "4 layers are listed, and num_hidden_layers=3"),
        (PATTERN | {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers=1.*=0"),
        (PATTERN | {"mlp_hidden_act": "silu"}, "mlp_hidden_act='silu' .*supported: relu2"),
        (PATTERN | {"mamba_hidden_act": "gelu"}, "mamba_hidden_act='gelu'"),
        (PATTERN | {"n_groups": 3}, "n_groups=3 does not divide mamba_num_heads .128."),
        (PATTERN | {"mamba_n_groups": 3}, "mamba_n_groups=3 does not divide"),
        (PATTERN | {"time_step_min": -1}, "time_step_min=-1.0 is not a number of at least 0"),
        (PATTERN | {"time_step_min": math.inf}, "time_step_min=inf"),
        (PATTERN | {"conv_kernel": 1}, "conv_kernel=1 .*at least 2"),
        (PATTERN | {"num_key_value_heads": 5}, "num_key_value_heads=5 does not divide"),
        (PATTERN | {"head_dim": 0}, "head_dim=0"),
        (PATTERN | {"intermediate_size": 0}, "intermediate_size=0"),
        (PATTERN | {"use_bias": 1}, "use_bias=1 is not true or false"),
    ],
    ids=str,
)
def test_rejects(values, words):
    with pytest.raises(ValueError, match=f"(?s)config.json: .*{words}"):
        parse_model_config(values)
