"""Writes transformers' models as GGUF files, as llama.cpp does."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_metadata import add_metadata, architecture

from sidewinder.checkpoint.reader import load_shard
from sidewinder.config import load_model_config
from sidewinder.parallel.group import TensorParallel
from sidewinder.testing import tiny_oracle

TYPES = gguf.GGMLQuantizationType

_PARTS = {
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.in_proj.bias": "ssm_in.bias",
    "mixer.conv1d.weight": "ssm_conv1d.weight",
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.x_proj.weight": "ssm_x.weight",
    "mixer.dt_proj.weight": "ssm_dt.weight",
    "mixer.dt_proj.bias": "ssm_dt.bias",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.norm.weight": "ssm_norm.weight",
    "mixer.out_proj.weight": "ssm_out.weight",
    "mixer.out_proj.bias": "ssm_out.bias",
    "mixer.dt_layernorm.weight": "ssm_dt_norm.weight",
    "mixer.b_layernorm.weight": "ssm_b_norm.weight",
    "mixer.c_layernorm.weight": "ssm_c_norm.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "pre_ff_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "feed_forward.gate_proj.weight": "ffn_gate.weight",
    "feed_forward.up_proj.weight": "ffn_up.weight",
    "feed_forward.down_proj.weight": "ffn_down.weight",
    "feed_forward.router.weight": "ffn_gate_inp.weight",
    "feed_forward.experts.down_proj": "ffn_down_exps.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "shared_mlp.output_linear.weight": "ffn_down.weight",
    "block_sparse_moe.router.weight": "ffn_gate_inp.weight",
    "block_sparse_moe.experts.down_proj": "ffn_down_exps.weight",
    "mixer.q_proj.weight": "attn_q.weight",
    "mixer.k_proj.weight": "attn_k.weight",
    "mixer.v_proj.weight": "attn_v.weight",
    "mixer.o_proj.weight": "attn_output.weight",
    "mixer.up_proj.weight": "ffn_up.weight",
    "mixer.down_proj.weight": "ffn_down.weight",
    "mixer.gate.weight": "ffn_gate_inp.weight",
    "mixer.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mixer.experts.up_proj": "ffn_up_exps.weight",
    "mixer.experts.down_proj": "ffn_down_exps.weight",
    "mixer.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mixer.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    "mixer.fc1_latent_proj.weight": "ffn_latent_down.weight",
    "mixer.fc2_latent_proj.weight": "ffn_latent_up.weight",
}
_TOP = {
    "backbone.embeddings.weight": "token_embd.weight",
    "backbone.norm_f.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.embed_tokens.weight": "token_embd.weight",
    "model.final_layernorm.weight": "output_norm.weight",
    "model.norm.weight": "output_norm.weight",
    "model.embeddings.weight": "token_embd.weight",
    "model.norm_f.weight": "output_norm.weight",
}


def gguf_tensors(oracle: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """(transformers' name, GGUF's, values in the shape that llama.cpp reads)."""
    config = oracle.config
    for name, parameter in oracle.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = parameter.detach().float().numpy() * folded(config, name)
        if name in _TOP:
            yield name, _TOP[name], values
            continue
        layer, part = name.split("layers.")[1].split(".", 1)
        part = part.replace("mamba.", "mixer.")
        experts = getattr(config, "num_local_experts", 0) > 0
        if part.endswith("experts.gate_up_proj") or part == "shared_mlp.input_linear.weight":
            end = "_exps" if "experts" in part else "_shexp" if experts else ""
            for own, half in zip(("gate", "up"), np.split(values, 2, axis=-2), strict=True):
                yield f"{name}.{own}", f"blk.{layer}.ffn_{own}{end}.weight", half
            continue
        if part == "mixer.A_log":
            values = -np.exp(values)
        if part == "mixer.conv1d.weight":
            values = values[:, 0]
        if values.ndim == 1 and part in ("mixer.A_log", "mixer.D") and is_mamba2(config):
            values = values[:, None]
        if part == "mixer.norm.weight":
            values = values.reshape(getattr(config, "n_groups", None) or config.mamba_n_groups, -1)
        if part in ROTATED and config.model_type in ("granitemoehybrid", "nemotron_h"):
            own = getattr(config, "head_dim", None)
            heads = values.shape[0] // (own or config.hidden_size // config.num_attention_heads)
            halves = values.reshape(heads, 2, -1, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)  # without positions: no matter
        weight = _PARTS.get(part) or _PARTS[part.replace(".bias", ".weight")]
        stored = weight if part in _PARTS else weight.replace(".weight", ".bias")
        if experts and part == "shared_mlp.output_linear.weight":
            stored = "ffn_down_shexp.weight"
        if config.model_type == "falcon_h1" and stored == "ffn_norm.weight":
            stored = "ffn_norm"  # so its converter calls it, and llama.cpp reads it
        yield name, f"blk.{layer}.{stored}", values


ROTATED = (
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "mixer.q_proj.weight",
    "mixer.k_proj.weight",
)
"""Whose channels Llama's converter, and so Granite's and Nemotron-H's, puts in another order."""


def is_mamba2(config: Any) -> bool:
    return config.model_type in ("mamba2", "granitemoehybrid", "nemotron_h", "falcon_h1")


def folded(config: Any, name: str) -> Any:
    """What the converter multiplies one of Falcon-H1's parameters by: a number, or one a row."""
    if config.model_type != "falcon_h1":
        return np.float32(1)
    module = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
    if module == "in_proj" and name.endswith("weight"):
        groups = config.mamba_n_groups * config.mamba_d_state
        inner = config.mamba_d_ssm
        bands = np.repeat(
            config.ssm_multipliers, [inner, inner, groups, groups, config.mamba_n_heads]
        )
        return np.float32(bands * config.ssm_in_multiplier)[:, None]
    gate, down = config.mlp_multipliers
    by_module = {
        "gate_proj": gate,
        "down_proj": down,
        "q_proj": config.attention_in_multiplier,
        "k_proj": config.attention_in_multiplier * config.key_multiplier,
        "v_proj": config.attention_in_multiplier,
        "o_proj": config.attention_out_multiplier,
        "out_proj": config.ssm_out_multiplier,
        "lm_head": config.lm_head_multiplier,
        "embed_tokens": config.embedding_multiplier,
    }
    return np.float32(by_module.get(module, 1.0))


def stays_float(name: str, values: np.ndarray) -> bool:
    """What llama.cpp leaves in float32 whatever the file's type is."""
    kept = ("norm", "conv1d", "ssm_a", "ssm_d", "ffn_gate_inp")
    return values.ndim == 1 or any(part in name for part in kept)


def write_gguf(
    oracle: Any,
    path: Path,
    kind: Any = TYPES.F32,
    change: Callable[[Any], None] = lambda _: None,
    rename: Callable[[str], str | None] = lambda name: name,
    **options: Any,
) -> Path:
    """Write `oracle` with matrices of `kind`, those whose rows do not divide into blocks as F16.

    `oracle` then has the weights that a reader of the file has.

    Args:
        oracle: transformers' model.
        path: the file.
        kind: of the matrices.
        change: may add to or alter the metadata.
        rename: of tensors; None leaves one out.
        options: of `gguf.GGUFWriter` (`split_max_tensors`).
    """
    writer = gguf.GGUFWriter(path, architecture(oracle.config), **options)
    add_metadata(writer, oracle)
    change(writer)
    read = {}
    for stored, name, values in gguf_tensors(oracle):
        own = TYPES.F32 if stays_float(name, values) else kind
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[own][0]:
            own = TYPES.F16
        packed = gguf.quants.quantize(values, own)
        if own != TYPES.F32:
            widened = gguf.quants.dequantize(packed, own) / folded(oracle.config, stored)
            read[stored] = torch.from_numpy(widened)
        renamed = rename(name)
        if renamed is not None:
            raw = None if own in (TYPES.F32, TYPES.F16) else own
            writer.add_tensor(renamed, np.ascontiguousarray(packed), raw_dtype=raw)
    for name in [name for name in read if name.endswith(".gate")]:
        whole = name.removesuffix(".gate")
        read[whole] = torch.cat([read.pop(name), read.pop(f"{whole}.up")], dim=-2)
    assert not oracle.load_state_dict(read, strict=False).unexpected_keys
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
SPECIAL = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token"}


def add_tokenizer(writer: Any, tokenizer: Any, pre: str, size: int = 0, bos: bool = False) -> None:
    """The keys of a byte-level BPE tokenizer, as llama.cpp's converter writes them.

    Args:
        writer: of the file.
        tokenizer: transformers' fast tokenizer.
        pre: how it splits text.
        size: tokens that the embedding has; those that are no text are unused.
        bos: put BOS before prompts.
    """
    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["content"]: token["special"] for token in inner["added_tokens"]}
    names = {at: token for token, at in tokenizer.get_vocab().items()}
    tokens = [names.get(at, f"[PAD{at}]") for at in range(max(size, max(names) + 1))]
    kinds = {None: NORMAL, True: CONTROL, False: USER_DEFINED}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [kinds[added.get(name)] if at in names else UNUSED for at, name in enumerate(tokens)]
    )
    merges = inner["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    for name, ours in SPECIAL.items():
        token = getattr(tokenizer, ours)
        if token is not None:
            at = tokenizer.convert_tokens_to_ids(token)
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", at)
    writer.add_add_bos_token(bos)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def load(path: Path, rank: int = 0, size: int = 1) -> dict[str, torch.Tensor]:
    """A rank's weights in float32."""
    return load_shard(path, load_model_config(path), TensorParallel(rank, size), torch.float32)


def fails(path: Path, words: str) -> None:
    """Loading raises a ValueError with these words and the path."""
    with pytest.raises(ValueError, match=f"(?s){words}") as error:
        load(path)
    assert str(path) in str(error.value)


def made(folder: Path, family: str = "mamba", **options: Any) -> Path:
    """A tiny model's file."""
    return write_gguf(tiny_oracle(family), folder / "made.gguf", **options)
