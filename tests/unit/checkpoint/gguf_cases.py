"""Writes transformers' models as GGUF files, as llama.cpp does."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

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
}
_TOP = {
    "backbone.embeddings.weight": "token_embd.weight",
    "backbone.norm_f.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.embed_tokens.weight": "token_embd.weight",
    "model.final_layernorm.weight": "output_norm.weight",
    "model.norm.weight": "output_norm.weight",
}


def gguf_tensors(oracle: Any) -> Iterator[tuple[str, str, np.ndarray]]:
    """(transformers' name, GGUF's, values in the shape that llama.cpp reads)."""
    config = oracle.config
    for name, parameter in oracle.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = parameter.detach().float().numpy()
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
        if part in ROTATED and config.model_type == "granitemoehybrid":
            heads = values.shape[0] // (config.hidden_size // config.num_attention_heads)
            halves = values.reshape(heads, 2, -1, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)  # without positions: no matter
        stored = _PARTS[part]
        if experts and part == "shared_mlp.output_linear.weight":
            stored = "ffn_down_shexp.weight"
        yield name, f"blk.{layer}.{stored}", values


ROTATED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
"""Whose channels the converter of Llama, and so of Granite, puts in another order."""


def is_mamba2(config: Any) -> bool:
    return config.model_type in ("mamba2", "granitemoehybrid")


def stays_float(name: str, values: np.ndarray) -> bool:
    """What llama.cpp leaves in float32 whatever the file's type is."""
    kept = ("norm", "conv1d", "ssm_a", "ssm_d", "ffn_gate_inp")
    return values.ndim == 1 or any(part in name for part in kept)


def add_metadata(writer: Any, oracle: Any) -> None:
    """The keys that llama.cpp's converter writes, without the vocabulary."""
    config = oracle.config
    if config.model_type in ("jamba", "granitemoehybrid"):
        add_hybrid_metadata(writer, config)
        return
    mamba2 = config.model_type == "mamba2"
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(int(config.expand * config.hidden_size))
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(config.num_heads if mamba2 else config.time_step_rank)
    if mamba2:
        writer.add_ssm_group_count(config.n_groups)
    else:
        writer.add_ssm_dt_b_c_rms(config.model_type == "falcon_mamba")
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)


def add_hybrid_metadata(writer: Any, config: Any) -> None:
    """Key-value heads are counted layer by layer: none where there is a mixer."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    kinds = config.layer_types
    heads = config.num_key_value_heads
    writer.add_head_count_kv([heads if kind == "full_attention" else 0 for kind in kinds])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_ssm_conv_kernel(config.mamba_d_conv)
    writer.add_ssm_inner_size(config.mamba_expand * config.hidden_size)
    writer.add_ssm_state_size(config.mamba_d_state)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if config.model_type == "jamba":
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_ssm_time_step_rank(config.mamba_dt_rank)
        writer.add_expert_count(config.num_experts)
        return
    experts = config.num_local_experts
    width = config.intermediate_size if experts else config.shared_intermediate_size
    writer.add_feed_forward_length(width)
    writer.add_expert_count(experts)
    writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    writer.add_ssm_time_step_rank(config.mamba_n_heads)
    writer.add_ssm_group_count(config.mamba_n_groups)
    writer.add_rope_scaling_finetuned(False)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


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
    names = {"falcon_mamba": "mamba", "granitemoehybrid": "granitehybrid"}
    arch = names.get(oracle.config.model_type, oracle.config.model_type)
    writer = gguf.GGUFWriter(path, arch, **options)
    add_metadata(writer, oracle)
    change(writer)
    read = {}
    for stored, name, values in gguf_tensors(oracle):
        own = TYPES.F32 if stays_float(name, values) else kind
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[own][0]:
            own = TYPES.F16
        packed = gguf.quants.quantize(values, own)
        if own != TYPES.F32:
            read[stored] = torch.from_numpy(gguf.quants.dequantize(packed, own).copy())
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
