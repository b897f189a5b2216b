"""Published shapes of models that have attention beside their mixers, as config.json values.

Zamba2's sizes are those of its configurations as other projects quote them, and make the
published numbers of parameters. Granite's are those of the model cards; where the 1b's four
layers attend, and its multipliers, no speed depends on. Nemotron-H's are the defaults of its
class, its order of layers that of NVIDIA's recipe; Nemotron-3-Nano's those of its model card.
Falcon-H1's depths, widths, heads and states are those of transformers' page about it; the MLPs'
widths and the 34b's groups are those that make the published numbers of parameters; no speed
depends on the multipliers, as long as embedding and logits have one. Jamba's sizes are those of
their configurations; Jamba-1.5-Mini has those of v0.1.
"""

from typing import Any


def _zamba(d_model: int, n_layers: int, d_ff: int, period: int, offset: int) -> dict[str, Any]:
    return {
        "model_type": "zamba",
        "vocab_size": 32000,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "intermediate_size": d_ff,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_mamba_heads": 2,
        "attn_layer_period": period,
        "attn_layer_offset": offset,
        "tie_word_embeddings": True,
    }


def _zamba2(d_model: int, n_layers: int, hybrid: tuple[int, ...], **more: Any) -> dict[str, Any]:
    return {
        "model_type": "zamba2",
        "vocab_size": 32000,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "layers_block_type": ["hybrid" if i in hybrid else "mamba" for i in range(n_layers)],
        "intermediate_size": 4 * d_model,
        "num_attention_heads": 32,
        "n_mamba_heads": 2 * d_model // 64,
        "mamba_d_state": 64,
        "mamba_ngroups": 1,
        "num_mem_blocks": 2,
        "adapter_rank": 128,
        "tie_word_embeddings": True,
    } | more


_BAMBA = {
    "model_type": "bamba",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attn_layer_indices": [9, 18, 27],
    "mamba_n_heads": 128,
    "mamba_d_head": 64,
    "mamba_n_groups": 1,
    "mamba_d_state": 128,
    "tie_word_embeddings": False,
}


def _granite_h(d_model: int, n_layers: int, d_ff: int, attends: tuple[int, ...]) -> dict[str, Any]:
    return {
        "model_type": "granitemoehybrid",
        "vocab_size": 100352,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "shared_intermediate_size": d_ff,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "num_local_experts": 0,
        "position_embedding_type": "nope",
        "layer_types": ["attention" if i in attends else "mamba" for i in range(n_layers)],
        "attention_multiplier": 12 / d_model,
        "embedding_multiplier": 12,
        "residual_multiplier": 0.246,
        "logits_scaling": 3,
        "mamba_n_heads": 48,
        "mamba_n_groups": 1,
        "mamba_d_state": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }


_NEMOTRON_H_8B = {
    "model_type": "nemotron_h",
    "vocab_size": 131072,
    "hidden_size": 4096,
    "num_hidden_layers": 52,
    "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
    "intermediate_size": 21504,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "ssm_state_size": 128,
    "tie_word_embeddings": False,
}


_GRANITE_H_TINY = _granite_h(1536, 40, 1024, (5, 15, 25, 35)) | {
    "num_local_experts": 64,
    "num_experts_per_tok": 6,
    "intermediate_size": 512,
}

_NEMOTRON_3_NANO = _NEMOTRON_H_8B | {
    "hidden_size": 2688,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "num_key_value_heads": 2,
    "mamba_num_heads": 64,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "routed_scaling_factor": 2.5,
}


def _falcon_h1(
    d_model: int,
    n_layers: int,
    d_ff: int,
    heads: tuple[int, int],
    ssm_heads: int,
    head_dims: tuple[int, int] = (128, 128),
    vocab_size: int = 65537,
    d_state: int = 256,
    n_groups: int = 1,
) -> dict[str, Any]:
    """`heads`: of queries, of keys and values; `head_dims`: of attention, of the mixer."""
    return {
        "model_type": "falcon_h1",
        "vocab_size": vocab_size,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "intermediate_size": d_ff,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": head_dims[0],
        "mamba_d_ssm": ssm_heads * head_dims[1],
        "mamba_n_heads": ssm_heads,
        "mamba_d_head": head_dims[1],
        "mamba_n_groups": n_groups,
        "mamba_d_state": d_state,
        "mamba_rms_norm": False,
        "rope_theta": 1e11,
        "embedding_multiplier": 5.656854249492381,
        "lm_head_multiplier": 0.0390625,
        "tie_word_embeddings": False,
    }


_JAMBA_V0_1 = {
    "model_type": "jamba",
    "vocab_size": 65536,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "mamba_d_state": 16,
    "mamba_dt_rank": 256,
    "tie_word_embeddings": False,
}

_JAMBA_3B = _JAMBA_V0_1 | {
    "hidden_size": 2560,
    "num_hidden_layers": 28,
    "intermediate_size": 8192,
    "num_attention_heads": 20,
    "num_key_value_heads": 1,
    "num_experts": 1,
    "attn_layer_period": 14,
    "attn_layer_offset": 7,
    "mamba_dt_rank": 160,
    "tie_word_embeddings": True,
}

HYBRIDS: dict[str, dict[str, Any]] = {
    "zamba-790m": _zamba(1536, 36, 6144, 6, 4),
    "zamba-7b": _zamba(3712, 76, 14848, 6, 4),
    "zamba2-1.2b": _zamba2(
        2048,
        38,
        (5, 11, 17, 23, 29, 35),
        num_mem_blocks=1,
        mamba_d_state=128,
        use_mem_rope=True,
        use_shared_attention_adapter=True,
    ),
    "zamba2-2.7b": _zamba2(2560, 54, (6, 12, 18, 24, 30, 36, 42, 47, 51)),
    "zamba2-7b": _zamba2(3584, 81, (6, *range(11, 78, 6)), mamba_ngroups=2, use_mem_rope=True),
    "bamba-9b": _BAMBA,
    "granite-4.0-h-350m": _granite_h(768, 32, 2048, (10, 13, 17, 27)),
    "granite-4.0-h-1b": _granite_h(1536, 40, 4096, (5, 15, 25, 35)),
    "granite-4.0-h-tiny": _GRANITE_H_TINY,
    "nemotron-h-8b": _NEMOTRON_H_8B,
    "nemotron-3-nano-30b": _NEMOTRON_3_NANO,
    "falcon-h1-0.5b": _falcon_h1(1024, 36, 2048, (8, 2), 24, (64, 64), 32784, 128),
    "falcon-h1-1.5b": _falcon_h1(2048, 24, 4608, (8, 2), 48, (128, 64)),
    "falcon-h1-1.5b-deep": _falcon_h1(1280, 66, 3072, (6, 2), 24, (128, 64)),
    "falcon-h1-3b": _falcon_h1(2560, 32, 6144, (10, 2), 32),
    "falcon-h1-7b": _falcon_h1(3072, 44, 12288, (12, 2), 24, vocab_size=130049),
    "falcon-h1-34b": _falcon_h1(5120, 72, 21504, (20, 4), 32, vocab_size=261120, n_groups=2),
    "jamba-v0.1": _JAMBA_V0_1,
    "jamba-reasoning-3b": _JAMBA_3B,
}
"""Name to config.json. `zamba-790m` is not published: see `shapes.SHAPES`."""
