"""The metadata of GGUF files: what is read of it, and what does not fit the tensors."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
from gguf_cases import TYPES, fails, made, write_gguf

from sidewinder.checkpoint.config_values import UNLIMITED
from sidewinder.cli.main import DONE, main
from sidewinder.config import load_model_config
from sidewinder.model_config import WeightMultipliers
from sidewinder.testing import save_tiny, tiny_oracle


def test_missing_tensor(tmp_path):
    file = made(tmp_path, rename=lambda name: None if name == "blk.1.ssm_d" else name)
    fails(file, r"lacks 1 parameters of this model: blk\.1\.ssm_d;.*GGUF metadata")


def test_unknown_tensor(tmp_path):
    file = made(tmp_path, change=lambda w: w.add_tensor("blk.0.more", np.zeros(3, np.float32)))
    fails(file, r"holds 1 parameters that this model lacks: blk\.0\.more;")


@pytest.mark.parametrize("key", ["ssm.state_size", "ssm.inner_size", "ssm.conv_kernel"])
def test_misshapen_tensor(tmp_path, key):
    file = made(tmp_path, change=lambda w: override(w, f"mamba.{key}", 6))
    fails(file, r"blk\.0\.ssm_\w+(\.weight)? has shape \[.*\] instead of \[.*GGUF metadata")


def override(writer, key, value):
    writer.kv_data[0][key].value = value


def remove(key):
    return lambda writer: writer.kv_data[0].pop(key)


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("mamba", lambda w: override(w, "general.architecture", "llama"),
         "general.architecture='llama' is not supported; supported: mamba, mamba2, jamba, gran"),
        ("mamba", remove("general.architecture"), "general.architecture=None|is missing"),
        ("mamba", remove("mamba.ssm.inner_size"), "mamba.ssm.inner_size is missing"),
        ("mamba2", remove("mamba2.ssm.group_count"), "mamba2.ssm.group_count is missing"),
        ("mamba", lambda w: override(w, "mamba.block_count", 5000), "block_count=5000 is too lar"),
        ("mamba", lambda w: override(w, "mamba.embedding_length", 25),
         r"token_embd.weight has shape \[101, 24\] instead of \[tokens, 25\]"),
        ("mamba", lambda w: w.add_vocab_size(102), "mamba.vocab_size=102, and token_embd.weight"),
        ("mamba2", lambda w: override(w, "mamba2.ssm.time_step_rank", 7),
         r"time_step_rank=7 does not divide mamba2.ssm.inner_size \(48\)"),
        ("mamba2", lambda w: override(w, "mamba2.ssm.group_count", 3),
         r"group_count=3 does not divide mamba2.ssm.time_step_rank \(8\)"),
        ("mamba", lambda w: override(w, "mamba.attention.layer_norm_rms_epsilon", 0.0),
         "layer_norm_rms_epsilon=0.0 is not a positive number"),
        ("mamba", lambda w: override(w, "mamba.ssm.conv_kernel", 1),
         "conv_kernel=1 is not an integer of at least 2"),
        ("jamba", remove("jamba.attention.head_count_kv"), "head_count_kv is no list of 5 numbers"),
        ("jamba", lambda w: override(w, "jamba.attention.head_count_kv", [0, 4, 0, 0]), "no list"),
        ("jamba", lambda w: override(w, "jamba.attention.head_count_kv", [4] * 5), "every layer"),
        ("jamba", lambda w: override(w, "jamba.attention.head_count_kv", [0, 4, 0, 0, 2]),
         r"head_count_kv=\[0, 4, 0, 0, 2\] must be one number wherever it is not 0"),
        ("jamba", lambda w: override(w, "jamba.attention.head_count_kv", [0, 3, 0, 0, 3]),
         r"head_count_kv=3 does not divide head_count \(8\)"),
        ("jamba", lambda w: override(w, "jamba.attention.head_count", 7),
         r"head_count=7 does not divide jamba.embedding_length \(40\)"),
        ("granitemoehybrid", lambda w: override(w, "granitehybrid.rope.scaling.finetuned", True),
         r"rope.scaling.finetuned is not false: rotary positions \(Bamba's\) are not supported"),
        ("granitemoehybrid", remove("granitehybrid.rope.scaling.finetuned"), "rotary positions"),
        ("granitemoehybrid", lambda w: override(w, "granitehybrid.logit_scale", -1.0),
         "logit_scale=-1.0 is not a number of at least 0"),
        ("granitemoehybrid", lambda w: override(w, "granitehybrid.residual_scale", 1e-30),
         "residual_scale=1.*e-30 is not between 1e-06 and 1000000"),
        ("mamba", lambda w: override(w, "general.architecture", "x" * 10**5), "='xxx.{,900}$"),
        ("jamba_experts", lambda w: override(w, "jamba.expert_used_count", 6),
         "expert_used_count=6 is above expert_count=5"),
        ("jamba_experts", lambda w: override(w, "jamba.expert_count", 4),
         r"ffn_gate_inp.weight has shape \[5, 40\] instead of \[4, 40\]"),
        ("nemotron_h", lambda w: w.add_nextn_predict_layers(1),
         r"nextn_predict_layers=1 \(multi-token prediction\) is not supported; .*--no-mtp"),
        ("nemotron_h", lambda w: override(w, "nemotron_h.feed_forward_length", [0, 0, 44, 44, 44]),
         "layer 3 has both key-value heads and an inner width"),
        ("nemotron_h", lambda w: override(w, "nemotron_h.feed_forward_length", [44, 44, 44, 0, 44]),
         "no layer has a mixer"),
        ("nemotron_h", lambda w: override(w, "nemotron_h.feed_forward_length", [0, 0, 44, 0, 43]),
         r"feed_forward_length=\[44, 43\] must be one number wherever it is not 0"),
        ("nemotron_h",
         lambda w: (remove("nemotron_h.feed_forward_length")(w), w.add_feed_forward_length(44)),
         "feed_forward_length is no list of 5 numbers"),
        ("nemotron_h", lambda w: override(w, "nemotron_h.feed_forward_length", [0, 0, -1, 0, -1]),
         "is no list of 5 numbers"),
        ("nemotron_h", lambda w: override(w, "nemotron_h.attention.head_count_kv", [0, 0, 0, 3, 0]),
         r"head_count_kv=3 does not divide head_count \(8\)"),
        ("nemotron_h", lambda w: override(w, "nemotron_h.attention.value_length", 7),
         r"value_length=7 is not nemotron_h.attention.key_length \(6\)"),
        ("nemotron_experts",
         lambda w: override(w, "nemotron_h_moe.feed_forward_length", [0, 0, 0, 0, 10]),
         "layer 1 has a router, and nemotron_h_moe.feed_forward_length says 0 of it"),
        ("nemotron_experts",
         lambda w: (remove("nemotron_h_moe.expert_used_count")(w),
                    w.add_array("nemotron_h_moe.expert_used_count", [2, 1])),
         r"expert_used_count=\[2, 1\] is not an integer"),
        ("nemotron_experts", lambda w: override(w, "nemotron_h_moe.expert_group_used_count", 2),
         "nemotron_h_moe.expert_group_used_count=2 is more than the 1 groups"),
        ("nemotron_experts", lambda w: override(w, "nemotron_h_moe.expert_group_count", 6),
         "nemotron_h_moe.expert_group_count=6 leaves groups of 1 experts"),
        ("falcon_h1", lambda w: w.add_float32("falcon-h1.mlp_gate_multiplier", 0.5),
         "mlp_gate_multiplier says that the weights are without their multipliers.*own converter"),
        ("falcon_h1", lambda w: override(w, "falcon-h1.attention.head_count_kv", 3),
         r"head_count_kv=3 does not divide falcon-h1.attention.head_count \(8\)"),
        ("falcon_h1", lambda w: w.add_rope_dimension_count(4),
         "dimension_count=4 of a head's 6 channels turn, and in Falcon-H1 all of them do"),
        ("falcon_h1", lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
         "rope.scaling.type='yarn' is not supported; supported: none, linear"),
        ("falcon_h1", lambda w: w.add_rope_scaling_factor(4.0), "scaled positions are not supp"),
    ],
)  # fmt: skip
def test_metadata_that_does_not_fit(tmp_path, family, change, words):
    fails(made(tmp_path, family, change=change), words)


FAMILIES = [
    "mamba", "falcon_mamba", "mamba2", "jamba", "jamba_experts", "granitemoehybrid",
    "granite_experts", "nemotron_h", "nemotron_experts", "falcon_h1",
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_is_the_folders(tmp_path, family):
    """But for the layout, and numbers that the file has in float32."""
    expected = load_model_config(save_tiny(family, tmp_path / "folder"))

    def change(writer):
        writer.add_eos_token_id(*expected.eos_token_ids)

    read = load_model_config(made(tmp_path, family, change=change))
    assert read.norm_eps == pytest.approx(expected.norm_eps, rel=1e-7)
    inner = read.norm_eps if expected.family == "jamba" else expected.mixer_norm_eps
    attention = expected.attention
    if family == "falcon_h1":  # multipliers are in the weights, those of keys, too
        attention = replace(attention, scale=attention.head_dim**-0.5)
        assert expected.weight_multipliers != read.weight_multipliers == WeightMultipliers()
        expected = replace(
            expected,
            weight_multipliers=WeightMultipliers(),
            embedding_multiplier=1.0,
            logits_divisor=1.0,
            norm_before_gate=False,  # there is no norm
        )
    if attention is not None:
        assert read.attention.scale == pytest.approx(attention.scale, rel=1e-7)
        attention = replace(attention, scale=read.attention.scale)
    if expected.family == "nemotron_h":  # no key has the least dt
        expected = replace(expected, time_step_limit=UNLIMITED)
    assert read == replace(
        expected, layout="gguf", norm_eps=read.norm_eps, mixer_norm_eps=inner, attention=attention
    )


@pytest.mark.parametrize("family", ["nemotron_h", "nemotron_experts", "falcon_h1"])
def test_the_plan_is_the_folders(tmp_path, family, capsys):
    plans = []
    for model in (save_tiny(family, tmp_path / "folder"), made(tmp_path, family)):
        assert main(["plan", str(model), "--tp", "2"]) == DONE
        plans.append(capsys.readouterr().out)
    assert plans[0] == plans[1]
    assert "whole model" in plans[0]


def test_nemotrons_eps_has_two_keys(tmp_path):
    def change(writer):
        remove("nemotron_h.attention.layer_norm_rms_epsilon")(writer)
        override(writer, "nemotron_h.attention.layer_norm_epsilon", 0.25)

    assert load_model_config(made(tmp_path, "nemotron_h", change=change)).norm_eps == 0.25


def test_tokens_that_end_a_text(tmp_path):
    def change(writer):
        writer.add_eos_token_id(7)
        writer.add_eot_token_id(9)
        writer.add_uint32("tokenizer.ggml.eom_token_id", 7)

    config = load_model_config(made(tmp_path, change=change))
    assert config.eos_token_ids == (7, 9)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16"),
     ("Q4_0", "bfloat16")],
)  # fmt: skip
def test_dtype_of_most_weights(tmp_path, kind, dtype):
    file = write_gguf(tiny_oracle("mamba", hidden_size=64), tmp_path / "m.gguf", TYPES[kind])
    assert load_model_config(file).dtype == dtype


def test_a_vocabulary_alone_is_no_model(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "vocab.gguf", "mamba")
    writer.add_embedding_length(24)
    writer.add_ssm_inner_size(48)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    fails(tmp_path / "vocab.gguf", "no token_embd.weight; a vocabulary alone is no model")
