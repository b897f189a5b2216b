"""A rank's shard is exactly its part of the checkpoint, in every family."""

import pytest
import torch
from reader_cases import load
from safetensors.torch import load_file

from sidewinder.config import load_model_config
from sidewinder.parallel.group import TensorParallel
from sidewinder.sharding.plan import is_float32, parameter_shapes, sharding_plan
from sidewinder.sharding.slicing import local_shape, reassemble, shard
from sidewinder.testing import TINY


def expected_mamba(stored, layer):
    """Ours of a Mamba layer, written out by hand from the stored tensors."""
    mixer = f"backbone.layers.{layer}.mixer."
    ours = {
        name: stored[mixer + name]
        for name in ("in_proj.weight", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "D",
                     "out_proj.weight")
    }  # fmt: skip
    ours["A_log"] = stored[mixer + "A_log"].T
    ours["conv.weight"] = stored[mixer + "conv1d.weight"][:, 0].T
    ours["conv.bias"] = stored[mixer + "conv1d.bias"]
    for name in ("in_proj.bias", "out_proj.bias"):
        if mixer + name in stored:
            ours[name] = stored[mixer + name]
    return ours


def expected_mamba2(stored, layer, mixer="backbone.layers.{}.mixer."):
    mixer = mixer.format(layer)
    names = ("in_proj.weight", "A_log", "D", "dt_bias", "norm.weight", "out_proj.weight")
    ours = {name: stored[mixer + name] for name in names}
    ours["conv.weight"] = stored[mixer + "conv1d.weight"][:, 0].T
    ours["conv.bias"] = stored[mixer + "conv1d.bias"]
    return ours


def expected_zamba(stored, layer):
    mixer = f"model.layers.{layer}.mamba."
    if mixer + "D" not in stored:
        mixer = f"model.layers.{layer}.mamba_decoder.mamba."
    in_proj = stored[mixer + "in_proj.weight"]
    return {
        "in_proj.weight": torch.cat([in_proj[0::2], in_proj[1::2]]),
        "conv.weight": stored[mixer + "conv1d.weight"][:, 0].T,
        "conv.bias": stored[mixer + "conv1d.bias"],
        "x_proj.weight": torch.cat(list(stored[mixer + "x_proj_weight"]), dim=1),
        "dt_proj.weight": stored[mixer + "dt_proj_weight"].flatten(0, 1),
        "dt_proj.bias": stored[mixer + "dt_proj_bias"].flatten(),
        "A_log": stored[mixer + "A_log"].flatten(0, 1).T,
        "D": stored[mixer + "D"].flatten(),
        "out_proj.weight": stored[mixer + "out_proj.weight"],
    }


def expected_zamba2(stored, layer):
    decoder = f"model.layers.{layer}.mamba_decoder"
    inner = ".mamba_decoder" if f"{decoder}.mamba.D" in stored else ""
    return expected_mamba2(stored, layer, f"model.layers.{{}}{inner}.mamba.")


def expected_mamba2_hybrid(stored, layer):
    if f"model.layers.{layer}.self_attn.q_proj.weight" in stored:
        return {}
    return expected_mamba2(stored, layer, "model.layers.{}.mamba.")


def expected_nemotron(stored, layer):
    if f"backbone.layers.{layer}.mixer.in_proj.weight" not in stored:
        return {}
    return expected_mamba2(stored, layer)


def expected_falcon_h1(stored, layer):
    """Of the mixer; in float32, as the stored model is."""
    mixer = f"model.layers.{layer}.mamba."
    bands = zip([48, 48, 14, 14, 8], TINY["falcon_h1"]["ssm_multipliers"], strict=True)
    rows = torch.cat([torch.full((width, 1), 1.25 * by) for width, by in bands])
    return {
        "in_proj.weight": stored[mixer + "in_proj.weight"] * rows,
        "dt_bias": stored[mixer + "dt_bias"],
        "out_proj.weight": stored[mixer + "out_proj.weight"] * 0.6,
    }


def expected_jamba(stored, layer):
    mixer = f"model.layers.{layer}.mamba."
    if mixer + "D" not in stored:
        return {}
    names = (
        "in_proj.weight", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "D", "out_proj.weight",
    )  # fmt: skip
    ours = {name: stored[mixer + name] for name in names}
    for name in ("dt", "B", "C"):
        ours[f"{name}_norm.weight"] = stored[f"{mixer}{name.lower()}_layernorm.weight"]
    ours["conv.weight"] = stored[mixer + "conv1d.weight"][:, 0].T
    ours["A_log"] = stored[mixer + "A_log"].T
    return ours


EXPECTED = {
    "mamba": expected_mamba,
    "falcon_mamba": expected_mamba,
    "mamba2": expected_mamba2,
    "zamba": expected_zamba,
    "zamba2": expected_zamba2,
    "bamba": expected_mamba2_hybrid,
    "granitemoehybrid": expected_mamba2_hybrid,
    "nemotron_h": expected_nemotron,
    "granite_experts": expected_mamba2_hybrid,
    "nemotron_experts": expected_nemotron,
    "falcon_h1": expected_falcon_h1,
    "jamba": expected_jamba,
    "jamba_experts": expected_jamba,
}


@pytest.mark.parametrize("family", TINY)
def test_whole_model_holds_the_stored_tensors(family, tiny_folder):
    folder = tiny_folder(family)
    stored, ours = load_file(folder / "model.safetensors"), load(folder)
    for layer in range(TINY[family]["num_hidden_layers"]):
        for name, value in EXPECTED[family](stored, layer).items():
            assert torch.equal(ours[f"layers.{layer}.mixer.{name}"], value), name
    hybrid = "model.embed_tokens.weight" in stored
    embedding = "model.embed_tokens.weight" if hybrid else "backbone.embeddings.weight"
    assert torch.equal(ours["embedding.weight"], stored[embedding])


VARIANTS = [
    ("mamba", {}),
    ("mamba", {"use_bias": True, "tie_word_embeddings": False, "conv_kernel": 2}),
    ("mamba", {"use_conv_bias": False}),
    ("falcon_mamba", {}),
    ("mamba2", {}),
    ("mamba2", {"n_groups": 1, "use_bias": True}),
    ("mamba2", {"n_groups": 4, "tie_word_embeddings": True}),
    ("zamba", {}),
    ("zamba", {"n_mamba_heads": 4, "num_key_value_heads": 4, "mamba_proj_bias": True}),
    ("zamba", {"n_mamba_heads": 1, "tie_word_embeddings": False}),
    ("zamba2", {"add_bias_linear": True, "tie_word_embeddings": False}),
    ("zamba2", {"num_mem_blocks": 1, "use_shared_attention_adapter": True}),
    ("bamba", {"attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True}),
    ("granitemoehybrid", {"attention_bias": True, "tie_word_embeddings": False}),
    ("nemotron_h", {"mlp_bias": True, "use_bias": True, "tie_word_embeddings": True}),
    ("granite_experts", {"tie_word_embeddings": False}),
    ("nemotron_experts", {"mlp_bias": True}),
    ("nemotron_experts", {"mlp_bias": True, "moe_latent_size": 12}),
    ("falcon_h1", {"mamba_rms_norm": True, "mamba_proj_bias": True, "projectors_bias": True}),
    ("falcon_h1", {"mamba_n_groups": 1, "attention_bias": True, "mlp_bias": True}),
    ("bamba", {"mamba_n_groups": 1, "num_key_value_heads": 8, "tie_word_embeddings": True}),
    ("jamba", {"mamba_proj_bias": True, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    ("jamba_experts", {"mamba_conv_bias": False}),
]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(("family", "overrides"), VARIANTS, ids=str)
def test_shards_are_parts_of_the_whole(family, overrides, size, tiny_folder):
    folder = tiny_folder(family, **overrides)
    config = load_model_config(folder)
    plan, whole = sharding_plan(config, size), load(folder)
    shards = [load(folder, rank, size) for rank in range(size)]
    assert all(list(part) == list(plan) == list(whole) for part in shards)
    for name, rule in plan.items():
        for rank in range(size):
            expected = shard(rule, whole[name], TensorParallel(rank, size))
            assert torch.equal(shards[rank][name], expected), name
        assert torch.equal(reassemble(rule, [part[name] for part in shards]), whole[name])


@pytest.mark.parametrize("family", TINY)
def test_results_own_contiguous_memory_in_the_right_dtype(family, tiny_folder):
    folder = tiny_folder(family)
    config = load_model_config(folder)
    plan, shapes = sharding_plan(config, 2), parameter_shapes(config)
    for name, tensor in load(folder, rank=1, size=2, dtype=torch.bfloat16).items():
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
        assert tensor.dtype == (torch.float32 if is_float32(name) else torch.bfloat16)
        assert tensor.shape == local_shape(plan[name], shapes[name], 1)


def test_conversion_rounds_as_torch_does(tiny_folder):
    folder = tiny_folder("mamba")
    full, half = load(folder), load(folder, dtype=torch.bfloat16)
    for name, tensor in half.items():
        assert torch.equal(tensor, full[name].to(tensor.dtype)), name


def test_progress_goes_to_standard_error(tiny_folder, capsys):
    load(tiny_folder("mamba"), progress=True)
    captured = capsys.readouterr()
    assert "weights: 100%" in captured.err
    assert captured.out == ""
    load(tiny_folder("mamba"))
    assert capsys.readouterr().err == ""
