"""Reading Zamba2: config.json, and weights of blocks that several layers call."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from sidewinder.bench.shapes import shape_values
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.checkpoint.reader import load_shard
from sidewinder.config import load_model_config
from sidewinder.model_config import MLPConfig, RotaryConfig
from sidewinder.parallel.group import TensorParallel
from sidewinder.testing import TINY

FILE = {"model_type": "zamba2"}
SMALL = FILE | {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"]}
ADAPTED = SMALL | {"use_shared_attention_adapter": True}


def test_fields():
    theirs = AutoConfig.for_model(**(TINY["zamba2"] | {"add_bias_linear": True}))
    config = parse_model_config(json.loads(json.dumps(theirs.to_dict())))
    assert (config.d_model, config.n_layers, config.d_inner, config.d_state) == (24, 6, 48, 7)
    assert (config.d_conv, config.n_heads, config.n_groups, config.head_dim) == (4, 8, 2, 6)
    assert (config.is_mamba2, config.gated_norm, config.norm_before_gate) == (True, True, False)
    assert (config.use_bias, config.use_conv_bias, config.residual_in_fp32) == (True, True, False)
    assert config.time_step_limit == (0.05, math.inf)
    assert config.mlp == MLPConfig(44, "gelu", use_bias=True, adapter_rank=5)
    assert config.mixer_layers == (0, 1, 2, 3, 4, 5)
    assert (config.attention_layers, config.mlp_layers, config.n_mlp_calls) == ((), (), 3)
    attention = config.attention
    assert attention.blocks == {"shared.0": (1, 4), "shared.1": (2,)}
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (4, 4, 12)
    assert (attention.scale, attention.use_bias, attention.adapter_rank) == (6**-0.5, False, 0)
    assert attention.rotary == RotaryConfig(theta=10000.0, width=12)


def test_the_gated_norm_has_its_own_eps():
    config = parse_model_config(SMALL | {"rms_norm_eps": 0.5})
    assert (config.norm_eps, config.gated_norm_eps) == (0.5, 1e-5)
    assert (
        parse_model_config({"model_type": "mamba2", "layer_norm_epsilon": 0.5}).gated_norm_eps
        == 0.5
    )


def test_a_file_that_lists_no_layers_has_those_of_the_class():
    theirs = AutoConfig.for_model("zamba2")
    assert parse_model_config(FILE).attention.layers == tuple(theirs.hybrid_layer_ids)


def test_one_block_is_named_as_zamba_s():
    assert parse_model_config(SMALL).attention.blocks == {"shared": (1, 2)}


def test_a_block_that_no_layer_calls_does_not_exist():
    config = parse_model_config(SMALL | {"num_mem_blocks": 5})
    assert config.attention.blocks == {"shared.0": (1,), "shared.1": (2,)}


def test_older_and_newer_keys():
    kinds = ["linear_attention", "hybrid", "hybrid"]
    newer = {"layer_types": kinds, "head_dim": 20, "hybrid_layer_ids": [1, 2]}
    older = {"layers_block_type": kinds, "attention_head_dim": 20, "rope_theta": 50}
    rest = FILE | {"num_hidden_layers": 3, "use_mem_rope": True}
    found = parse_model_config(rest | newer | {"rope_parameters": {"rope_theta": 50.0}})
    assert found == parse_model_config(rest | older)
    assert found.attention.rotary == RotaryConfig(50.0, 20)


def test_what_transformers_ignores_is_ignored():
    ignored = {
        "use_conv_bias": False, "time_step_limit": [0.1, 0.2], "time_step_max": 0.5,
        "use_long_context": True, "max_position_embeddings": 7, "chunk_size": 16,
        "use_shared_mlp_adapter": True, "kv_channels": 80, "use_mem_eff_path": True,
    }  # fmt: skip
    assert parse_model_config(SMALL | ignored) == parse_model_config(SMALL)


def test_a_published_shape_keeps_its_layers_when_it_is_cut():
    config = parse_model_config(shape_values("zamba2-2.7b", 14))
    assert (config.n_layers, config.attention.blocks) == (
        14,
        {"shared.0": (6,), "shared.1": (12,)},
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (FILE | {"num_hidden_layers": 3}, "layers_block_type lists 54 layers instead of 3"),
        (SMALL | {"layers_block_type": ["mamba"] * 3}, "no layer is hybrid; a zamba2 model needs"),
        (SMALL | {"layers_block_type": ["mamba", "attention", "hybrid"]}, "may only list mamba"),
        (SMALL | {"hybrid_layer_ids": [0, 2]}, r"hybrid_layer_ids=\[0, 2\] are not .*\[1, 2\]"),
        (SMALL | {"use_shared_mlp_adapter": False}, "use_shared_mlp_adapter=false is not supp"),
        (
            ADAPTED | {"num_key_value_heads": 8},
            r"use_shared_attention_adapter=true .*\(5120\).* 32 and 8 heads of 160",
        ),
        (ADAPTED | {"attention_head_dim": 80}, "32 and 32 heads of 80; only models are supported"),
        (SMALL | {"attention_hidden_size": 2560}, "attention_hidden_size=2560 must be twice"),
        (SMALL | {"mamba_headdim": 64}, r"n_mamba_heads \(8\) times mamba_headdim \(64\) must be"),
        (SMALL | {"n_mamba_heads": 7}, "n_mamba_heads=7 does not divide the inner width"),
        (SMALL | {"mamba_ngroups": 3}, "mamba_ngroups=3 does not divide n_mamba_heads"),
        (SMALL | {"num_mem_blocks": 0}, "num_mem_blocks=0 is not an integer of at least 1"),
        (SMALL | {"adapter_rank": 0}, "adapter_rank=0 is not an integer of at least 1"),
        (SMALL | {"hidden_act": "mish"}, "hidden_act='mish' is not supported; supported: gelu"),
        (SMALL | {"time_step_min": -1}, "time_step_min=-1.0 is not a number of at least 0"),
        (SMALL | {"use_mem_rope": 1}, "use_mem_rope=1 is not true or false"),
        (SMALL | {"use_long_context": "yes"}, "use_long_context='yes' is not true or false"),
        (
            SMALL | {"use_mem_rope": True, "rope_parameters": {"rope_type": "yarn"}},
            "rope_type='yarn' is not supported; supported: default",
        ),
        (
            SMALL | {"use_mem_rope": True, "rope_parameters": {"partial_rotary_factor": 0.5}},
            "turns 80 of a head's 160 channels, and in Zamba2 all of them turn",
        ),
        (
            SMALL | {"use_mem_rope": True, "attention_head_dim": 5},
            "heads of 5 rotates 5 channels; they are rotated in pairs",
        ),
        (SMALL | {"num_attention_heads": 9999}, "attention_head_dim=0"),
    ],
    ids=str,
)
def test_rejects(values, words):
    with pytest.raises(ValueError, match=f"(?s)config.json: .*{words}"):
        parse_model_config(values)


def load(folder, rank=0, size=1):
    config = load_model_config(folder)
    return load_shard(folder, config, TensorParallel(rank, size), torch.float32)


def test_blocks_and_adapters_are_read_from_the_first_layers_that_call_them(tiny_folder):
    folder = tiny_folder("zamba2", use_shared_attention_adapter=True, add_bias_linear=True)
    stored, ours = load_file(folder / "model.safetensors"), load(folder)
    for block, layer, calls in (("shared.0", 1, {1: 0, 4: 2}), ("shared.1", 2, {2: 1})):
        prefix = f"model.layers.{layer}.shared_transformer"
        for name, key in (
            ("input_norm.weight", "input_layernorm.weight"),
            ("pre_ff_norm.weight", "pre_ff_layernorm.weight"),
            ("attention.q.weight", "self_attn.q_proj.weight"),
            ("attention.k.weight", "self_attn.k_proj.weight"),
            ("attention.v.weight", "self_attn.v_proj.weight"),
            ("attention.o.weight", "self_attn.o_proj.weight"),
            ("mlp.down.weight", "feed_forward.down_proj.weight"),
            ("mlp.down.bias", "feed_forward.down_proj.bias"),
        ):
            assert torch.equal(ours[f"{block}.{name}"], stored[f"{prefix}.{key}"]), name
        for kind in ("weight", "bias"):
            both = stored[f"{prefix}.feed_forward.gate_up_proj.{kind}"]
            gate, up = ours[f"{block}.mlp.gate.{kind}"], ours[f"{block}.mlp.up.{kind}"]
            assert torch.equal(torch.cat([gate, up]), both)
        for caller, call in calls.items():
            for name, key in (
                ("q", "self_attn.linear_q"),
                ("k", "self_attn.linear_k"),
                ("v", "self_attn.linear_v"),
                ("gate_up", "feed_forward.gate_up_proj"),
            ):
                for number, matrix in enumerate("AB"):
                    weight = ours[f"layers.{caller}.adapter.{name}.{matrix}.weight"]
                    where = f"{prefix}.{key}_adapter_list.{call}.{number}.weight"
                    assert torch.equal(weight, stored[where]), where
    for layer in (1, 2, 4):
        prefix, mixer = f"model.layers.{layer}", f"layers.{layer}"
        assert torch.equal(ours[f"{mixer}.linear.weight"], stored[f"{prefix}.linear.weight"])
        norm = stored[f"{prefix}.mamba_decoder.input_layernorm.weight"]
        assert torch.equal(ours[f"{mixer}.norm.weight"], norm)


def elsewhere(folder, target, change):
    """A copy of a checkpoint whose tensors `change` has changed."""
    shutil.copy(folder / "config.json", target)
    save_file(change(load_file(folder / "model.safetensors")), target / "model.safetensors")
    return target


FIRST, AGAIN = "model.layers.1.shared_transformer.", "model.layers.4.shared_transformer."


@pytest.mark.parametrize("keep", [True, False], ids=["again", "only there"])
def test_a_block_may_be_stored_with_another_of_its_layers(tiny_folder, tmp_path, keep):
    """Which of the tied names a file has depends on what wrote it."""

    def change(stored):
        moved = {
            key.replace(FIRST, AGAIN): value.clone()
            for key, value in stored.items()
            if key.startswith(FIRST)
        }
        return {k: v for k, v in stored.items() if keep or not k.startswith(FIRST)} | moved

    folder = tiny_folder("zamba2")
    ours, moved = load(folder), load(elsewhere(folder, tmp_path, change))
    assert list(ours) == list(moved)
    assert all(torch.equal(ours[name], moved[name]) for name in ours)


@pytest.mark.parametrize(
    "part",
    [
        "self_attn.o_proj.weight",
        "feed_forward.gate_up_proj_adapter_list.0.1.weight",
        "feed_forward.gate_up_proj_adapter_list.2.0.weight",
    ],
)
def test_a_block_stored_again_must_be_the_same(tiny_folder, tmp_path, part):
    folder = elsewhere(
        tiny_folder("zamba2"),
        tmp_path,
        lambda stored: stored | {AGAIN + part: stored[FIRST + part] + 1},
    )
    with pytest.raises(ValueError, match=rf"{AGAIN}{part} differs from {FIRST}{part}"):
        load(folder)


def test_a_missing_adapter_is_named(tiny_folder, tmp_path):
    key = FIRST + "feed_forward.gate_up_proj_adapter_list.2.0.weight"
    folder = elsewhere(
        tiny_folder("zamba2"),
        tmp_path,
        lambda stored: {name: value for name, value in stored.items() if name != key},
    )
    with pytest.raises(ValueError, match=f"lacks 1 parameters of this model: {key};"):
        load(folder)
