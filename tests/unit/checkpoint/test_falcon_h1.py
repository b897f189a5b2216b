"""Falcon-H1: reading config.json, rejections, and weights with their multipliers folded in."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.checkpoint.reader import load_shard
from sidewinder.config import load_model_config
from sidewinder.model_config import MLPConfig, RotaryConfig, WeightMultipliers
from sidewinder.parallel.group import TensorParallel
from sidewinder.testing import TINY

FALCON = {"model_type": "falcon_h1"}


def test_fields():
    changes = {"mamba_rms_norm": True, "mamba_norm_before_gate": False, "attention_bias": True}
    theirs = AutoConfig.for_model(**(TINY["falcon_h1"] | changes))
    config = parse_model_config(theirs.to_dict())
    assert (config.d_model, config.n_layers, config.d_inner, config.d_state) == (40, 3, 48, 7)
    assert (config.d_conv, config.n_heads, config.n_groups, config.head_dim) == (4, 8, 2, 6)
    assert (config.is_mamba2, config.gated_norm, config.norm_before_gate) == (True, True, False)
    assert (config.use_bias, config.use_conv_bias, config.residual_in_fp32) == (False, True, False)
    assert config.mlp == MLPConfig(44, "silu")
    assert config.mixer_layers == config.attention_layers == config.mlp_layers == (0, 1, 2)
    assert config.is_parallel
    attention = config.attention
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (8, 4, 6)
    assert (attention.use_bias, attention.rotary) == (True, RotaryConfig(10000.0, 6))
    assert attention.scale == pytest.approx(6**-0.5 * 0.6)
    assert (config.embedding_multiplier, config.logits_divisor) == (1.5, 2.5)
    assert config.weight_multipliers == WeightMultipliers(
        mixer_in=1.25,
        mixer_out=0.6,
        mixer_bands=(0.7, 1.4, 0.8, 1.2, 0.9),
        attention_in=1.3,
        attention_out=0.7,
        mlp_gate=0.9,
        mlp_down=0.6,
    )


def test_the_inner_width_and_key_value_heads_absent_and_null():
    def read(**values):
        config = parse_model_config(FALCON | values)
        return config.d_inner, config.attention.n_kv_heads

    assert read() == (1024, 8)
    assert read(mamba_d_ssm=None, num_key_value_heads=None) == (8192, 32)
    assert read(mamba_d_ssm=None, mamba_expand=1, num_key_value_heads=2) == (4096, 2)
    assert read(mamba_d_ssm=512) == (512, 8)


def test_older_names_of_positions():
    rotary = parse_model_config(FALCON | {"rope_theta": 1e11, "rope_scaling": None})
    assert rotary.attention.rotary == RotaryConfig(1e11, 128)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; supported: silu"),
        ({"sliding_window": 512}, "sliding_window=512 is not supported.*leave it out"),
        ({"projectors_bias": True}, "mamba_proj_bias is False and projectors_bias is not"),
        ({"mamba_proj_bias": True}, "mamba_proj_bias is True and projectors_bias is not"),
        ({"mamba_d_ssm": 1000}, r"mamba_n_heads=128 does not divide the inner width \(1000\)"),
        ({"mamba_d_head": 16}, r"mamba_n_heads .128. times mamba_d_head .16.*width \(1024\)"),
        ({"mamba_n_groups": 3}, "mamba_n_groups=3 does not divide mamba_n_heads"),
        ({"num_key_value_heads": 5}, "num_key_value_heads=5 does not divide"),
        ({"num_attention_heads": 24}, "num_attention_heads=24 does not divide hidden_size"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type='yarn' is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "64 of a head's 128.*Falcon-H1 all"),
        ({"key_multiplier": 0}, "key_multiplier=0.* is not a positive number"),
        ({"ssm_out_multiplier": -1.0}, "ssm_out_multiplier=-1.0 is not a positive number"),
        ({"ssm_multipliers": [1.0] * 4}, "ssm_multipliers=.* is not a list of 5 numbers"),
        ({"ssm_multipliers": [1, 1, 0, 1, 1]}, "ssm_multipliers=.* must be 5 positive numbers"),
        ({"mlp_multipliers": 2.0}, "mlp_multipliers=2.0 is not a list of 2 numbers"),
        ({"mlp_multipliers": [1.0, "x"]}, "mlp_multipliers='x' is not a number"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused_by_name(values, words):
    with pytest.raises(ValueError, match=words):
        parse_model_config(FALCON | values)


BIASES = {
    "attention_bias": True,
    "mlp_bias": True,
    "mamba_proj_bias": True,
    "projectors_bias": True,
    "mamba_rms_norm": True,
}
BANDS = torch.tensor([0.7] * 48 + [1.4] * 48 + [0.8] * 14 + [1.2] * 14 + [0.9] * 8).double()
MULTIPLIED = {
    # our name: theirs, and what the weight and the bias are multiplied by
    "mixer.in_proj": ("mamba.in_proj", 1.25 * BANDS[:, None], BANDS),
    "mixer.out_proj": ("mamba.out_proj", 0.6, 0.6),
    "mixer.norm": ("mamba.norm", 1, None),
    "attention.q": ("self_attn.q_proj", 1.3, 1),
    "attention.k": ("self_attn.k_proj", 1.3, 1),
    "attention.v": ("self_attn.v_proj", 1.3, 1),
    "attention.o": ("self_attn.o_proj", 0.7, 0.7),
    "mlp.gate": ("feed_forward.gate_proj", 0.9, 0.9),
    "mlp.up": ("feed_forward.up_proj", 1, 1),
    "mlp.down": ("feed_forward.down_proj", 0.6, 0.6),
    "norm": ("input_layernorm", 1, None),
    "pre_ff_norm": ("pre_ff_layernorm", 1, None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16], ids=["of f32", "of bf16"])
def test_weights_are_multiplied_and_rounded_once(tiny_folder, tmp_path, own, dtype):
    folder = shutil.copytree(tiny_folder("falcon_h1", **BIASES), tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    stored = {name: weight.to(own) for name, weight in stored.items()}
    save_file(stored, folder / "model.safetensors")
    ours = load_shard(folder, load_model_config(folder), TensorParallel(), dtype)
    for name, (theirs, weight_by, bias_by) in MULTIPLIED.items():
        for kind, by in (("weight", weight_by), ("bias", bias_by)):
            if by is None:
                continue
            by = torch.as_tensor(by).float()
            product = stored[f"model.layers.1.{theirs}.{kind}"].float() * by
            found = ours[f"layers.1.{name}.{kind}"]
            assert found.dtype == dtype
            assert torch.equal(found, product.to(dtype)), name
    for name in ("A_log", "D", "dt_bias"):
        theirs = stored[f"model.layers.1.mamba.{name}"].float()
        assert torch.equal(ours[f"layers.1.mixer.{name}"], theirs)
    assert torch.equal(ours["embedding.weight"], stored["model.embed_tokens.weight"].to(dtype))
    assert torch.equal(ours["lm_head.weight"], stored["lm_head.weight"].to(dtype))


def test_random_weights_have_no_multipliers():
    """They are drawn as a checkpoint's are once it is read: activations stay of order one."""
    from sidewinder.checkpoint.random import random_shard

    def drawn(**changes):
        config = parse_model_config(TINY["falcon_h1"] | changes)
        return random_shard(config, TensorParallel(), torch.float32)

    plain, other = drawn(), drawn(ssm_out_multiplier=0.01, ssm_multipliers=[3.0] * 5)
    assert all(torch.equal(plain[name], other[name]) for name in plain)
