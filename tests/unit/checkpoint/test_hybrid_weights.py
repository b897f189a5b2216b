"""What hybrids have beside their mixers, read from transformers' checkpoints."""

import torch
from safetensors.torch import load_file

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
