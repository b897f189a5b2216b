"""Reading config.json of both layouts: what transformers reads, and every rejection."""

import json
import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.config import load_model_config
from sidewinder.model_config import MLPConfig
from sidewinder.testing import TINY, authors_layout, save_tiny

AUTHORS = {"d_model": 24, "n_layer": 3, "vocab_size": 101, "ssm_cfg": {}}


def transformers_values(family, **overrides):
    return AutoConfig.for_model(**(TINY[family] | overrides)).to_dict()


@pytest.mark.parametrize("family", TINY)
def test_agrees_with_transformers(family, tmp_path):
    config = load_model_config(save_tiny(family, tmp_path))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert config.layout == "transformers"
    assert config.family == theirs.model_type == TINY[family]["model_type"]
    assert (config.vocab_size, config.d_model) == (theirs.vocab_size, theirs.hidden_size)
    assert config.n_layers == theirs.num_hidden_layers
    assert config.tie_embeddings == theirs.tie_word_embeddings
    assert config.eos_token_ids == (theirs.eos_token_id,)
    assert config.dtype == "float32"


@pytest.mark.parametrize("name", TINY)
def test_absent_keys_take_transformers_defaults(name):
    said: dict[str, Any] = {
        "granitemoehybrid": {"num_local_experts": 0},
        "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention", "mlp"]},
        "nemotron_experts": {"layers_block_type": ["linear_attention", "moe", "mlp"]},
    }.get(name, {})
    family = TINY[name]["model_type"]
    theirs = AutoConfig.for_model(family, **said)
    ours = parse_model_config({"model_type": family} | said)
    assert ours == parse_model_config(json.loads(json.dumps(theirs.to_dict())))
    assert ours.d_model == theirs.hidden_size


def test_mamba_fields():
    config = parse_model_config(transformers_values("mamba", time_step_rank="auto"))
    assert (config.d_inner, config.d_state, config.d_conv, config.dt_rank) == (48, 5, 4, 2)
    assert (config.n_heads, config.n_groups, config.mixer_norm_eps) == (1, 1, None)
    assert not config.use_bias
    assert config.use_conv_bias
    assert config.residual_in_fp32


def test_falcon_mamba_takes_intermediate_size_over_expand():
    values = {"model_type": "falcon_mamba", "hidden_size": 4096, "expand": 16}
    config = parse_model_config(values | {"intermediate_size": 8192, "mixer_rms_eps": 1e-5})
    assert (config.d_inner, config.mixer_norm_eps) == (8192, 1e-5)


@pytest.mark.parametrize(
    "limit",
    [
        [0.001, math.inf],
        [0.001, "Infinity"],
        [0.001, "inf"],
        [0.001, {"__float__": "Infinity"}],
    ],
    ids=str,
)
def test_mamba2_time_step_limit(limit, tmp_path):
    values = transformers_values("mamba2") | {"time_step_limit": limit}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = load_model_config(tmp_path / "config.json")
    assert config.time_step_limit == (0.001, math.inf)
    assert (config.n_heads, config.head_dim, config.n_groups) == (8, 6, 2)
    assert config.gated_norm
    assert not config.norm_before_gate


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (["mamba", "mamba", "hybrid", "hybrid", "mamba", "mamba"], (2, 3)),
        (["linear_attention", "hybrid"] * 3, (1, 3, 5)),
    ],
)
def test_zamba_layer_names_older_and_newer(names, layers):
    values = transformers_values("zamba") | {"layers_block_type": names}
    assert parse_model_config(values).attention.layers == layers


@pytest.mark.parametrize(("period", "offset", "n_layers"), [(3, 2, 6), (6, 4, 76), (4, 0, 9)])
def test_zamba_layers_by_period_and_offset(period, offset, n_layers):
    pattern = {"attn_layer_period": period, "attn_layer_offset": offset}
    values = TINY["zamba"] | pattern | {"num_hidden_layers": n_layers}
    theirs = AutoConfig.for_model(**values).layers_block_type
    expected = tuple(layer for layer, kind in enumerate(theirs) if kind == "hybrid")
    assert parse_model_config(values).attention.layers == expected


def test_zamba_attention():
    config = parse_model_config(transformers_values("zamba", hidden_act="swish"))
    attention = config.attention
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (4, 4, 12)
    assert (attention.scale, attention.shared, attention.rotary) == (6**-0.5, True, None)
    assert config.mlp == MLPConfig(44, "silu")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16"}, "float16"),
        ({"dtype": "torch.bfloat16"}, "bfloat16"),
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({}, "float32"),
    ],
    ids=str,
)
def test_dtype(values, dtype):
    assert parse_model_config({"model_type": "mamba"} | values).dtype == dtype


@pytest.mark.parametrize(("eos", "ids"), [(3, (3,)), ([3, 5], (3, 5)), (None, ())], ids=str)
def test_eos_tokens(eos, ids):
    config = parse_model_config({"model_type": "mamba", "eos_token_id": eos})
    assert config.eos_token_ids == ids


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_authors_layout_says_the_same(family, tmp_path):
    source = save_tiny(family, tmp_path / "transformers")
    ours = load_model_config(source)
    authors = load_model_config(authors_layout(source, tmp_path / "authors"))
    same = (
        "family", "vocab_size", "d_model", "n_layers", "d_inner", "d_state", "d_conv", "dt_rank",
        "n_heads", "n_groups", "norm_eps", "use_bias", "use_conv_bias", "gated_norm",
        "norm_before_gate", "time_step_limit", "residual_in_fp32", "tie_embeddings", "dtype",
    )  # fmt: skip
    assert {name: getattr(ours, name) for name in same} == {
        name: getattr(authors, name) for name in same
    }
    assert (authors.layout, authors.eos_token_ids) == ("authors", ())


def test_authors_defaults_and_padded_vocabulary():
    config = parse_model_config(AUTHORS)
    assert (config.family, config.vocab_size, config.d_inner) == ("mamba", 104, 48)
    assert (config.d_state, config.dt_rank, config.tie_embeddings) == (16, 2, True)
    mamba2 = parse_model_config(
        AUTHORS | {"d_model": 64, "pad_vocab_size_multiple": 16, "ssm_cfg": {"layer": "Mamba2"}}
    )
    assert (mamba2.family, mamba2.vocab_size, mamba2.d_state) == ("mamba2", 112, 128)
    assert (mamba2.n_heads, mamba2.n_groups, mamba2.head_dim) == (2, 1, 64)


def test_authors_mamba2_options():
    options = {"layer": "Mamba2", "headdim": 8, "ngroups": 3, "norm_before_gate": True,
               "rmsnorm": False, "dt_limit": [0.0, "inf"], "chunk_size": 64,
               "A_init_range": [1, 16]}  # fmt: skip
    config = parse_model_config(AUTHORS | {"ssm_cfg": options})
    assert (config.n_heads, config.n_groups, config.head_dim) == (6, 3, 8)
    assert (config.norm_before_gate, config.gated_norm) == (True, False)


def test_dtype_that_the_config_does_not_say_is_the_weights(tmp_path):
    folder = authors_layout(save_tiny("mamba", tmp_path / "source"), tmp_path / "authors")
    weights = torch.load(folder / "pytorch_model.bin")
    torch.save({key: value.half() for key, value in weights.items()}, folder / "pytorch_model.bin")
    assert load_model_config(folder).dtype == "float16"
    # Configuration alone, as for a plan: an index without its shards.
    (folder / "pytorch_model.bin").rename(folder / "shard.bin")
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "gone.bin", "b": "shard.bin"}}))
    assert load_model_config(folder).dtype == "float16"
    (folder / "shard.bin").unlink()
    assert load_model_config(folder).dtype == "float32"


@pytest.mark.parametrize("family", TINY)
def test_layers_without_end_are_refused_before_they_are_listed(family):
    with pytest.raises(ValueError, match=r"num_hidden_layers=1000000000 .*at most 4096"):
        parse_model_config({"model_type": TINY[family]["model_type"], "num_hidden_layers": 10**9})


@pytest.mark.parametrize(
    ("family", "key"),
    [("granite_experts", "num_local_experts"), ("nemotron_experts", "n_routed_experts")],
)
def test_experts_without_end_are_refused_before_they_are_listed(family, key):
    assert parse_model_config(TINY[family] | {key: 4096}).experts.n_experts == 4096
    with pytest.raises(ValueError, match=f"{key}=4097 is too large; at most 4096"):
        parse_model_config(TINY[family] | {key: 4097})


HUGE = 10**400


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (AUTHORS | {"n_layer": 10**9}, "n_layer=1000000000 .*at most 4096"),
        (
            {"model_type": "mamba", "hidden_size": 1 << 25},
            "hidden_size=33554432 .*at most 16777216",
        ),
        ({"model_type": "mamba", "vocab_size": HUGE}, "vocab_size=10.*at most 16777216"),
        ({"model_type": "mamba", "expand": 1e308}, "expand=1e.308 times 768 .*at most 16777216"),
        ({"model_type": "mamba", "expand": 1e6}, "expand=1000000.0 times 768 .*at most 16777216"),
        ({"model_type": "mamba", "layer_norm_epsilon": HUGE}, "layer_norm_epsilon has more digits"),
        ({"model_type": "mamba", "eos_token_id": HUGE}, "eos_token_id=10.*0 to 16777215"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_rejects_absurd_sizes(values, words):
    with pytest.raises(ValueError, match=f"(?s)config.json: .*{words}"):
        parse_model_config(values)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"hidden_size": ' + "9" * 5000 + "}"])
def test_json_without_end_is_refused_by_the_files_name(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load_model_config(tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"model_type": "llama"},
            "model_type='llama'.*mamba, .*, granitemoehybrid, nemotron_h, falcon_h1, jamba",
        ),
        ({"hidden_size": 3}, "neither `model_type`.*supported architectures: mamba"),
        ({"model_type": "mamba", "quantization_config": {"bits": 4}}, "quantised"),
        ({"model_type": "mamba", "hidden_act": "gelu"}, "hidden_act='gelu'.*silu"),
        ({"model_type": "mamba", "hidden_size": 0}, "hidden_size=0 .*at least 1"),
        ({"model_type": "mamba", "hidden_size": "768"}, "hidden_size='768'"),
        ({"model_type": "mamba", "conv_kernel": 1}, "conv_kernel=1 .*at least 2"),
        ({"model_type": "mamba", "expand": -2}, "expand=-2"),
        ({"model_type": "mamba", "expand": 0.001}, "not a positive size"),
        ({"model_type": "mamba", "time_step_rank": 0}, "time_step_rank=0"),
        ({"model_type": "mamba", "layer_norm_epsilon": 0}, "layer_norm_epsilon=0"),
        ({"model_type": "mamba", "layer_norm_epsilon": "tiny"}, "'tiny' is not a number"),
        ({"model_type": "mamba", "layer_norm_epsilon": [1]}, "not a number"),
        ({"model_type": "mamba", "use_bias": 1}, "use_bias=1 is not true or false"),
        ({"model_type": "mamba", "torch_dtype": "int8"}, "dtype='int8'.*float32"),
        ({"model_type": "mamba", "eos_token_id": "2"}, "eos_token_id='2'"),
        ({"model_type": "mamba2", "num_heads": 7}, "num_heads .7. times head_dim .64."),
        ({"model_type": "mamba2", "n_groups": 3}, "n_groups=3 does not divide num_heads .128."),
        ({"model_type": "mamba2", "time_step_limit": [1.0]}, "not a pair"),
        ({"model_type": "mamba2", "time_step_limit": [2.0, 1.0]}, "low <= high"),
        ({"model_type": "zamba", "hidden_mamba_act": "relu"}, "hidden_mamba_act='relu'"),
        ({"model_type": "zamba", "hidden_act": "tanh"}, "hidden_act='tanh'.*gelu"),
        ({"model_type": "zamba", "n_mamba_heads": 3}, "n_mamba_heads=3 does not divide"),
        ({"model_type": "zamba", "num_key_value_heads": 5}, "num_key_value_heads=5"),
        ({"model_type": "zamba", "attention_hidden_size": 100}, "twice hidden_size"),
        ({"model_type": "zamba", "layers_block_type": ["hybrid"]}, "lists 1 layers instead of 76"),
        ({"model_type": "zamba", "layers_block_type": ["attention"]}, "may only list"),
        ({"model_type": "zamba", "layers_block_type": ["mamba"] * 76}, "no layer is hybrid"),
        (AUTHORS | {"rms_norm": False}, "rms_norm=false"),
        (AUTHORS | {"attn_layer_idx": [1]}, "attn_layer_idx"),
        (AUTHORS | {"d_intermediate": 64}, "d_intermediate"),
        (AUTHORS | {"n_layer": None}, "n_layer is missing"),
        (AUTHORS | {"ssm_cfg": 3}, "ssm_cfg=3 is not an object"),
        (AUTHORS | {"ssm_cfg": {"layer": "Mamba3"}}, "layer='Mamba3'.*Mamba1, Mamba2"),
        (AUTHORS | {"ssm_cfg": {"headdim": 8}}, "unknown options headdim of Mamba1; known: "),
        (AUTHORS | {"ssm_cfg": {"activation": "relu"}}, "activation='relu'"),
        (AUTHORS | {"ssm_cfg": {"layer": "Mamba2", "headdim": 7}}, "headdim=7 does not divide"),
        (AUTHORS | {"ssm_cfg": {"layer": "Mamba2", "headdim": 8, "ngroups": 4}}, "ngroups=4"),
        (AUTHORS | {"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "D_has_hdim"),
        (AUTHORS | {"ssm_cfg": {"layer": "Mamba2", "d_ssm": 24}}, "d_ssm=24.*only 48"),
    ],
    ids=str,
)
def test_rejects(values, words):
    with pytest.raises(ValueError, match=f"(?s)config.json: .*{words}"):
        parse_model_config(values)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mam')
    with pytest.raises(ValueError, match="is not valid JSON"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds no JSON object"):
        load_model_config(tmp_path)
