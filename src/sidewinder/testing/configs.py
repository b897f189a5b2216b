"""Tiny configurations of every family, and of some with experts."""

from typing import Any

from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.config import ModelConfig

TINY: dict[str, dict[str, Any]] = {
    "mamba": {
        "model_type": "mamba", "vocab_size": 101, "hidden_size": 24, "state_size": 5,
        "num_hidden_layers": 3, "conv_kernel": 4, "expand": 2, "time_step_rank": 3,
        "use_bias": False, "use_conv_bias": True, "tie_word_embeddings": True,
    },
    "falcon_mamba": {
        "model_type": "falcon_mamba", "vocab_size": 97, "hidden_size": 20, "state_size": 4,
        "num_hidden_layers": 3, "conv_kernel": 3, "expand": 2, "time_step_rank": 5,
        "use_bias": True, "tie_word_embeddings": False,
    },
    "mamba2": {
        "model_type": "mamba2", "vocab_size": 103, "hidden_size": 24, "expand": 2, "num_heads": 8,
        "head_dim": 6, "state_size": 7, "n_groups": 2, "num_hidden_layers": 3, "conv_kernel": 4,
        "chunk_size": 8, "tie_word_embeddings": False,
    },
    "zamba": {
        "model_type": "zamba", "vocab_size": 99, "hidden_size": 24, "num_hidden_layers": 6,
        "intermediate_size": 44, "num_attention_heads": 4, "num_key_value_heads": 4,
        "n_mamba_heads": 2, "mamba_d_state": 5, "mamba_d_conv": 4, "mamba_expand": 2,
        "mamba_dt_rank": 3, "attn_layer_period": 3, "attn_layer_offset": 2,
        "tie_word_embeddings": True,
    },
    "zamba2": {
        "model_type": "zamba2", "vocab_size": 111, "hidden_size": 24, "num_hidden_layers": 6,
        "layers_block_type": ["mamba", "hybrid", "hybrid", "mamba", "hybrid", "mamba"],
        "intermediate_size": 44, "num_attention_heads": 4, "num_mem_blocks": 2,
        "adapter_rank": 5, "use_mem_rope": True, "n_mamba_heads": 8, "mamba_ngroups": 2,
        "mamba_d_state": 7, "mamba_d_conv": 4, "mamba_expand": 2, "chunk_size": 8,
        "time_step_min": 0.05, "tie_word_embeddings": True,
    },
    "bamba": {
        "model_type": "bamba", "vocab_size": 105, "hidden_size": 48, "num_hidden_layers": 5,
        "intermediate_size": 44, "num_attention_heads": 8, "num_key_value_heads": 4,
        "attn_layer_indices": [2, 4], "mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 7,
        "mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 8, "tie_word_embeddings": False,
    },
    "granitemoehybrid": {
        "model_type": "granitemoehybrid", "vocab_size": 107, "hidden_size": 48,
        "num_hidden_layers": 4, "shared_intermediate_size": 36, "num_attention_heads": 8,
        "num_key_value_heads": 4, "num_local_experts": 0, "position_embedding_type": "nope",
        "layer_types": ["mamba", "mamba", "attention", "mamba"],
        "attention_multiplier": 0.3, "embedding_multiplier": 1.5, "residual_multiplier": 0.5,
        "logits_scaling": 3.0, "mamba_n_heads": 8, "mamba_n_groups": 1, "mamba_d_state": 6,
        "mamba_chunk_size": 8, "tie_word_embeddings": True,
    },
    "nemotron_h": {
        "model_type": "nemotron_h", "vocab_size": 109, "hidden_size": 40, "num_hidden_layers": 5,
        "layers_block_type": [
            "linear_attention", "linear_attention", "mlp", "full_attention", "mlp",
        ],
        "intermediate_size": 44, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 6, "mamba_num_heads": 8, "mamba_head_dim": 6, "n_groups": 2,
        "ssm_state_size": 7, "chunk_size": 8, "time_step_min": 0.05, "tie_word_embeddings": False,
    },
    "falcon_h1": {
        "model_type": "falcon_h1", "vocab_size": 111, "hidden_size": 40, "num_hidden_layers": 3,
        "intermediate_size": 44, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 6, "mamba_d_ssm": 48, "mamba_n_heads": 8, "mamba_n_groups": 2,
        "mamba_d_state": 7, "mamba_d_conv": 4, "mamba_chunk_size": 8,
        "embedding_multiplier": 1.5, "lm_head_multiplier": 0.4, "key_multiplier": 0.6,
        "attention_in_multiplier": 1.3, "attention_out_multiplier": 0.7,
        "ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.6,
        "ssm_multipliers": [0.7, 1.4, 0.8, 1.2, 0.9], "mlp_multipliers": [0.9, 0.6],
        "tie_word_embeddings": False,
    },
    "jamba": {
        "model_type": "jamba", "vocab_size": 113, "hidden_size": 40, "num_hidden_layers": 5,
        "intermediate_size": 44, "num_attention_heads": 8, "num_key_value_heads": 4,
        "num_experts": 1, "attn_layer_period": 3, "attn_layer_offset": 1, "mamba_d_state": 5,
        "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 3, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Default tiny configuration of each family, as keyword arguments of transformers' config."""

TINY |= {
    "granite_experts": TINY["granitemoehybrid"] | {
        "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 18,
    },
    "nemotron_experts": TINY["nemotron_h"] | {
        "layers_block_type": [
            "linear_attention", "moe", "full_attention", "linear_attention", "moe",
        ],
        "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 10,
        "moe_shared_expert_intermediate_size": 21, "routed_scaling_factor": 2.5,
    },
    "jamba_experts": TINY["jamba"] | {
        "num_experts": 5, "num_experts_per_tok": 2, "expert_layer_period": 2,
        "expert_layer_offset": 1, "intermediate_size": 18,
    },
}  # fmt: skip
"""Families that also come with experts, so."""


def tiny_config(family: str, **overrides: Any) -> ModelConfig:
    """The architecture of `TINY[family]`, with overrides, without any weights."""
    return parse_model_config(TINY[family] | overrides)
