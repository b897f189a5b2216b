"""What hybrids have beside their mixers, read from transformers' checkpoints."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sidewinder.checkpoint.reader import load_shard
from sidewinder.config import load_model_config
from sidewinder.parallel.group import TensorParallel


def load(folder):
    return load_shard(folder, load_model_config(folder), TensorParallel(), torch.float32)


def test_zamba_shared_block_and_linears(tiny_folder):
    folder = tiny_folder("zamba")
    stored, ours = load_file(folder / "model.safetensors"), load(folder)
    block = "model.layers.2.shared_transf."
    assert torch.equal(ours["shared.attention.o.weight"], stored[block + "self_attn.o_proj.weight"])
    assert torch.equal(ours["shared.mlp.up.weight"], stored[block + "feed_forward.up_proj.weight"])
    norm = stored[block + "pre_ff_layernorm.weight"]
    assert torch.equal(ours["shared.pre_ff_norm.weight"], norm)
    linear = stored["model.layers.5.linear.weight"]
    assert torch.equal(ours["layers.5.linear.weight"], linear)
    final = stored["model.final_layernorm.weight"]
    assert torch.equal(ours["final_norm.weight"], final)


def test_bamba_attention_and_mlps(tiny_folder):
    folder = tiny_folder("bamba", attention_bias=True, mlp_bias=True)
    stored, ours = load_file(folder / "model.safetensors"), load(folder)
    names = {
        "layers.2.norm": "model.layers.2.input_layernorm",
        "layers.2.pre_ff_norm": "model.layers.2.pre_ff_layernorm",
        **{f"layers.2.attention.{x}": f"model.layers.2.self_attn.{x}_proj" for x in "qkvo"},
        **{
            f"layers.{layer}.mlp.{part}": f"model.layers.{layer}.feed_forward.{part}_proj"
            for layer in range(5)
            for part in ("gate", "up", "down")
        },
        "final_norm": "model.final_layernorm",
        "lm_head": "lm_head",
    }
    for name, key in names.items():
        assert torch.equal(ours[f"{name}.weight"], stored[f"{key}.weight"]), name
        if "attention" in name or "mlp" in name:
            assert torch.equal(ours[f"{name}.bias"], stored[f"{key}.bias"]), name


def test_granite_packs_gate_and_up(tiny_folder):
    folder = tiny_folder("granitemoehybrid", tie_word_embeddings=False)
    stored, ours = load_file(folder / "model.safetensors"), load(folder)
    for layer in range(4):
        mlp, theirs = f"layers.{layer}.mlp.", f"model.layers.{layer}.shared_mlp."
        packed = stored[theirs + "input_linear.weight"]
        assert torch.equal(ours[mlp + "gate.weight"], packed[:36])
        assert torch.equal(ours[mlp + "up.weight"], packed[36:])
        assert torch.equal(ours[mlp + "down.weight"], stored[theirs + "output_linear.weight"])
        norm = stored[f"model.layers.{layer}.post_attention_layernorm.weight"]
        assert torch.equal(ours[f"layers.{layer}.pre_ff_norm.weight"], norm)
    attention = stored["model.layers.2.self_attn.o_proj.weight"]
    assert torch.equal(ours["layers.2.attention.o.weight"], attention)
    assert torch.equal(ours["final_norm.weight"], stored["model.norm.weight"])
    assert torch.equal(ours["lm_head.weight"], stored["lm_head.weight"])


@pytest.mark.parametrize("top", ["backbone", "model"])
def test_nemotron_calls_all_parts_mixers(tiny_folder, tmp_path, top):
    folder = tiny_folder("nemotron_h", mlp_bias=True)
    stored = load_file(folder / "model.safetensors")
    renamed = {name.replace("backbone.", f"{top}."): value for name, value in stored.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    ours = load(tmp_path)
    names = {
        **{f"layers.{layer}.norm": f"backbone.layers.{layer}.norm" for layer in range(5)},
        **{f"layers.3.attention.{x}": f"backbone.layers.3.mixer.{x}_proj" for x in "qkvo"},
        **{
            f"layers.{layer}.mlp.{part}": f"backbone.layers.{layer}.mixer.{part}_proj"
            for layer in (2, 4)
            for part in ("up", "down")
        },
        "layers.1.mixer.in_proj": "backbone.layers.1.mixer.in_proj",
        "embedding": "backbone.embeddings",
        "final_norm": "backbone.norm_f",
        "lm_head": "lm_head",
    }
    for name, key in names.items():
        assert torch.equal(ours[f"{name}.weight"], stored[f"{key}.weight"]), name
        if "mlp" in name:
            assert torch.equal(ours[f"{name}.bias"], stored[f"{key}.bias"]), name


def test_nemotron_s_second_table_must_be_the_first_where_they_are_tied(tiny_folder, tmp_path):
    """transformers keeps both apart, whatever its file says."""
    folder = tiny_folder("nemotron_h", tie_word_embeddings=True)
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(load(folder)["embedding.weight"], stored["lm_head.weight"])
    save_file(
        stored | {"lm_head.weight": stored["lm_head.weight"] + 1}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="differs from the embedding"):
        load(tmp_path)
