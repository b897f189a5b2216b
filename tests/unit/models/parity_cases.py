"""Configurations on which models are compared with transformers: fixed ones, and random ones."""

import random
from typing import Any

from sidewinder.testing import TINY

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", {}),
    "mamba-odd": (
        "mamba",
        {"hidden_size": 13, "expand": 3, "state_size": 7, "time_step_rank": 1, "conv_kernel": 2,
         "use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False,
         "vocab_size": 37, "residual_in_fp32": False},
    ),
    "falcon": ("falcon_mamba", {}),
    "falcon-tied": (
        "falcon_mamba",
        {"hidden_size": 22, "time_step_rank": 3, "use_bias": False, "conv_kernel": 4,
         "tie_word_embeddings": True, "use_conv_bias": False},
    ),
    "mamba2-two-groups": ("mamba2", {}),
    "mamba2-one-group": (
        "mamba2",
        {"n_groups": 1, "use_bias": True, "use_conv_bias": False, "conv_kernel": 2,
         "tie_word_embeddings": True, "time_step_limit": (0.05, 0.2), "vocab_size": 61},
    ),
    "mamba2-three-groups": (
        "mamba2",
        {"hidden_size": 15, "num_heads": 6, "head_dim": 5, "n_groups": 3, "conv_kernel": 3,
         "time_step_limit": (0.0, 0.1), "chunk_size": 16},
    ),
    "zamba-two-heads": ("zamba", {}),
    "zamba-one-head": (
        "zamba",
        {"n_mamba_heads": 1, "num_attention_heads": 8, "num_key_value_heads": 4,
         "mamba_conv_bias": False, "mamba_proj_bias": True, "mamba_d_conv": 2,
         "tie_word_embeddings": False},
    ),
    "zamba-four-heads": (
        "zamba",
        {"n_mamba_heads": 4, "mamba_dt_rank": 5, "mamba_d_conv": 3, "intermediate_size": 29,
         "vocab_size": 53, "hidden_act": "silu"},
    ),
    "zamba2": ("zamba2", {}),
    "zamba2-adapted-attention": (
        "zamba2",
        {"num_mem_blocks": 1, "use_shared_attention_adapter": True, "use_mem_rope": False,
         "add_bias_linear": True, "mamba_ngroups": 1, "mamba_d_conv": 2, "hidden_act": "silu",
         "time_step_min": 0.3, "rms_norm_eps": 0.1, "tie_word_embeddings": False},
    ),
    "zamba2-three-blocks": (
        "zamba2",
        {"layers_block_type": ["hybrid", "hybrid", "mamba", "hybrid", "hybrid", "hybrid"],
         "num_mem_blocks": 3, "hidden_size": 40, "num_attention_heads": 8,
         "num_key_value_heads": 4, "n_mamba_heads": 5, "mamba_ngroups": 5, "mamba_d_conv": 3,
         "attention_head_dim": 6, "adapter_rank": 1, "intermediate_size": 29, "vocab_size": 53,
         "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
         "use_long_context": True, "tie_word_embeddings": False},
    ),
    "bamba": ("bamba", {}),
    "bamba-one-group": (
        "bamba",
        {"mamba_n_groups": 1, "mamba_proj_bias": True, "mamba_conv_bias": False,
         "mamba_d_conv": 2, "attention_bias": True, "mlp_bias": True, "head_dim": 9,
         "attn_layer_indices": [0, 1, 3], "time_step_limit": (0.05, 0.2),
         "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
         "tie_word_embeddings": True},
    ),
    "bamba-odd": (
        "bamba",
        {"hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": None,
         "mamba_n_heads": 10, "mamba_n_groups": 5, "mamba_d_conv": 3, "intermediate_size": 29,
         "vocab_size": 53, "num_hidden_layers": 4,
         "attn_layer_indices": [1],
         "rope_parameters": {"rope_type": "default", "rope_theta": 300.0,
                             "partial_rotary_factor": 1.0}},
    ),
    "bamba-one-key-value-head": (
        "bamba", {"num_key_value_heads": 1, "num_attention_heads": 6, "attn_layer_indices": [1, 3]},
    ),
    "granite": ("granitemoehybrid", {}),
    "granite-rope": (
        "granitemoehybrid",
        {"position_embedding_type": "rope", "rope_parameters": {"rope_theta": 40.0},
         "layer_types": ["attention", "mamba", "attention"], "num_hidden_layers": 3,
         "attention_bias": True, "mamba_proj_bias": True, "mamba_n_groups": 2,
         "num_key_value_heads": None, "time_step_limit": (0.05, 0.2),
         "shared_intermediate_size": 29, "rms_norm_eps": 0.1, "embedding_multiplier": 12,
         "residual_multiplier": 0.22, "logits_scaling": 0.25, "tie_word_embeddings": False},
    ),
    "granite-experts": ("granite_experts", {}),
    "granite-experts-odd": (
        "granite_experts",
        {"num_local_experts": 9, "num_experts_per_tok": 3, "intermediate_size": 7,
         "shared_intermediate_size": 11, "hidden_size": 40, "num_attention_heads": 4,
         "mamba_n_heads": 10, "residual_multiplier": 0.22, "tie_word_embeddings": False},
    ),
    "nemotron": ("nemotron_h", {}),
    "nemotron-experts": ("nemotron_experts", {}),
    "nemotron-experts-groups": (
        "nemotron_experts",
        {"hybrid_override_pattern": "EM-M*E", "layers_block_type": None, "num_hidden_layers": 6,
         "num_key_value_heads": 2,
         "n_routed_experts": 12, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2,
         "norm_topk_prob": False, "moe_intermediate_size": 7, "mlp_bias": True,
         "moe_shared_expert_intermediate_size": 9},
    ),
    "nemotron-biased": (
        "nemotron_h",
        {"hybrid_override_pattern": "-*MM-*", "layers_block_type": None, "num_hidden_layers": 6,
         "use_bias": True, "mlp_bias": True, "use_conv_bias": False, "n_groups": 1,
         "conv_kernel": 2, "head_dim": 9, "num_key_value_heads": 8, "intermediate_size": 29,
         "time_step_min": 0.3, "tie_word_embeddings": True, "layer_norm_epsilon": 0.1},
    ),
    "nemotron-odd": (
        "nemotron_h",
        {"hidden_size": 33, "layers_block_type": ["linear_attention", "linear_attention", "mlp"],
         "num_hidden_layers": 3, "mamba_num_heads": 10, "mamba_head_dim": 4, "n_groups": 5,
         "conv_kernel": 3, "vocab_size": 53, "time_step_min": 0.001},
    ),
    "falcon-h1": ("falcon_h1", {}),
    "falcon-h1-normed": (
        "falcon_h1",
        {"hidden_size": 33, "head_dim": 10, "mamba_d_ssm": None, "mamba_expand": 2,
         "mamba_n_heads": 6, "mamba_d_head": 11, "mamba_n_groups": 1, "mamba_rms_norm": True,
         "mamba_norm_before_gate": False, "attention_bias": True, "mlp_bias": True,
         "mamba_proj_bias": True, "projectors_bias": True, "mamba_conv_bias": False,
         "rms_norm_eps": 0.1, "time_step_limit": (0.05, 0.3), "intermediate_size": 29,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e11},
         "tie_word_embeddings": True},
    ),
    "falcon-h1-norm-first": (
        "falcon_h1",
        {"head_dim": 4, "hidden_size": 48, "num_key_value_heads": 8, "mamba_d_conv": 2,
         "mamba_d_ssm": 30, "mamba_n_heads": 10, "mamba_n_groups": 5, "mamba_rms_norm": True,
         "mamba_norm_before_gate": True, "vocab_size": 53, "num_hidden_layers": 2,
         "attention_bias": True},
    ),
    "jamba": ("jamba", {}),
    "jamba-odd": (
        "jamba",
        {"hidden_size": 26, "num_attention_heads": 13, "num_key_value_heads": 1,
         "attn_layer_period": 2, "attn_layer_offset": 0, "mamba_dt_rank": 1, "mamba_d_conv": 2,
         "mamba_d_state": 7, "mamba_conv_bias": False, "mamba_proj_bias": True,
         "mamba_expand": 3, "rms_norm_eps": 0.1, "intermediate_size": 29, "vocab_size": 53,
         "tie_word_embeddings": True},
    ),
    "jamba-experts": ("jamba_experts", {}),
    "jamba-all-experts": (
        "jamba_experts",
        {"expert_layer_period": 1, "expert_layer_offset": 0, "num_experts": 9,
         "num_experts_per_tok": 3, "intermediate_size": 7, "attn_layer_offset": 0,
         "num_key_value_heads": 8, "mamba_dt_rank": 7},
    ),
    "jamba-without-attention": (
        "jamba_experts", {"attn_layer_offset": 5, "attn_layer_period": 9, "mamba_d_conv": 3},
    ),
    "bamba-without-attention": (
        "bamba", {"attn_layer_indices": None, "num_hidden_layers": 2, "mamba_n_groups": 4},
    ),
}  # fmt: skip
"""Configurations with odd sizes: family and what replaces `testing.TINY`."""


def _random_experts(family: str, draw: random.Random) -> dict[str, Any]:
    n_experts, n_chosen, d_ff = draw.choice([4, 8, 12]), draw.randrange(1, 5), draw.randrange(4, 20)
    chosen = {"num_experts_per_tok": n_chosen}
    if family == "granite_experts":
        return chosen | {"num_local_experts": n_experts, "intermediate_size": d_ff}
    if family == "jamba_experts":
        period = draw.randrange(1, 4)
        return chosen | {
            "num_experts": n_experts, "intermediate_size": d_ff, "expert_layer_period": period,
            "expert_layer_offset": draw.randrange(period),
        }  # fmt: skip
    kinds = ["linear_attention", "moe", *draw.choices((*NEMOTRON_KINDS, "moe"), k=3)]
    return chosen | {
        "layers_block_type": draw.sample(kinds, 5), "n_routed_experts": n_experts,
        "n_group": 2, "topk_group": 2 if n_chosen > n_experts // 2 else draw.choice([1, 2]),
        "moe_intermediate_size": d_ff, "norm_topk_prob": draw.random() < 0.5,
        "moe_shared_expert_intermediate_size": draw.randrange(4, 30),
    }  # fmt: skip


NEMOTRON_KINDS = ("linear_attention", "full_attention", "mlp")


def random_case(family: str, seed: int) -> dict[str, Any]:
    """Random odd sizes of `family`, valid for tp 1 to 4."""
    draw = random.Random(f"{family}-{seed}")
    if family.endswith("_experts"):
        return random_case(TINY[family]["model_type"], seed) | _random_experts(family, draw)
    width = draw.randrange(9, 27)
    common = {"vocab_size": draw.randrange(30, 90), "tie_word_embeddings": draw.random() < 0.5}
    if family == "zamba":
        heads, per_kv = draw.choice([4, 5]), draw.choice([1, 2])
        return common | {
            "hidden_size": heads * per_kv * 4,
            "num_attention_heads": heads * per_kv, "num_key_value_heads": heads,
            "n_mamba_heads": draw.choice([1, 2, 4]), "mamba_d_state": draw.randrange(1, 8),
            "mamba_dt_rank": draw.randrange(1, 7), "mamba_d_conv": draw.randrange(2, 5),
            "intermediate_size": draw.randrange(8, 50), "mamba_proj_bias": draw.random() < 0.5,
        }  # fmt: skip
    if family == "zamba2":
        groups, mamba_heads = draw.choice([(1, 5), (2, 4), (2, 10), (5, 5), (4, 8)])
        heads, adapted = draw.choice([4, 5]), draw.random() < 0.5
        more = {} if adapted else {"attention_head_dim": 2 * draw.randrange(2, 6)}
        kinds = ["hybrid", "hybrid", *draw.choices(["mamba", "hybrid"], k=3)]
        return common | more | {
            "hidden_size": 20 * draw.choice([1, 2]), "num_hidden_layers": 5,
            "layers_block_type": draw.sample(kinds, 5), "num_mem_blocks": draw.randrange(1, 5),
            "num_attention_heads": heads, "use_shared_attention_adapter": adapted,
            "use_mem_rope": draw.random() < 0.5, "adapter_rank": draw.randrange(1, 9),
            "n_mamba_heads": mamba_heads, "mamba_ngroups": groups,
            "mamba_d_state": draw.randrange(1, 8), "mamba_d_conv": draw.randrange(2, 5),
            "intermediate_size": draw.randrange(8, 50), "chunk_size": draw.randrange(4, 20),
            "add_bias_linear": draw.random() < 0.5, "time_step_min": draw.choice([0.001, 0.1]),
        }  # fmt: skip
    if family in ("bamba", "granitemoehybrid"):
        groups, per_group, head_dim = draw.choice([(1, 5, 4), (2, 3, 4), (5, 1, 6), (3, 2, 2)])
        kv_heads, per_kv = draw.choice([4, 5]), draw.choice([1, 3])
        common |= {
            "hidden_size": groups * per_group * head_dim // 2, "mamba_n_groups": groups,
            "mamba_n_heads": groups * per_group, "mamba_chunk_size": draw.randrange(4, 20),
            "mamba_d_state": draw.randrange(1, 8), "mamba_d_conv": draw.randrange(2, 5),
            "num_attention_heads": kv_heads * per_kv, "num_key_value_heads": kv_heads,
            "head_dim": 2 * draw.randrange(2, 6), "attention_bias": draw.random() < 0.5,
            "mamba_proj_bias": draw.random() < 0.5, "mamba_conv_bias": draw.random() < 0.5,
        }  # fmt: skip
        attends = sorted(draw.sample(range(5), draw.randrange(1, 4)))
        if family == "bamba":
            return common | {
                "attn_layer_indices": attends, "intermediate_size": draw.randrange(8, 50),
                "mlp_bias": draw.random() < 0.5,
            }  # fmt: skip
        kinds = ["attention" if layer in attends else "mamba" for layer in range(5)]
        return common | {
            "layer_types": kinds, "num_hidden_layers": 5,
            "shared_intermediate_size": draw.randrange(8, 50),
            "position_embedding_type": draw.choice([None, "nope", "rope"]),
            "residual_multiplier": draw.choice([0.22, 1.0]),
        }  # fmt: skip
    if family == "nemotron_h":
        groups, per_group, head_dim = draw.choice([(1, 5, 4), (2, 3, 4), (5, 1, 6), (3, 2, 2)])
        kv_heads, per_kv = draw.choice([4, 5]), draw.choice([1, 3])
        kinds = ["linear_attention", *draw.choices(NEMOTRON_KINDS, k=4)]
        return common | {
            "hidden_size": draw.randrange(9, 50), "layers_block_type": draw.sample(kinds, 5),
            "mamba_num_heads": groups * per_group, "mamba_head_dim": head_dim, "n_groups": groups,
            "ssm_state_size": draw.randrange(1, 8), "conv_kernel": draw.randrange(2, 5),
            "num_attention_heads": kv_heads * per_kv, "num_key_value_heads": kv_heads,
            "head_dim": draw.randrange(4, 12), "intermediate_size": draw.randrange(8, 50),
            "use_bias": draw.random() < 0.5, "use_conv_bias": draw.random() < 0.5,
            "mlp_bias": draw.random() < 0.5, "time_step_min": draw.choice([0.001, 0.1]),
        }  # fmt: skip
    if family == "jamba":
        kv_heads, per_kv = draw.choice([1, 2, 4, 5]), draw.choice([4, 5])
        period = draw.randrange(2, 6)
        return common | {
            "hidden_size": kv_heads * per_kv * draw.randrange(1, 4), "num_hidden_layers": 5,
            "num_attention_heads": kv_heads * per_kv, "num_key_value_heads": kv_heads,
            "attn_layer_period": period, "attn_layer_offset": draw.randrange(period),
            "mamba_d_state": draw.randrange(1, 9), "mamba_d_conv": draw.randrange(2, 5),
            "mamba_dt_rank": draw.randrange(1, 8), "mamba_expand": draw.randrange(1, 4),
            "mamba_proj_bias": draw.random() < 0.5, "mamba_conv_bias": draw.random() < 0.5,
            "intermediate_size": draw.randrange(8, 50), "rms_norm_eps": draw.choice([1e-6, 0.1]),
        }  # fmt: skip
    if family == "falcon_h1":
        groups, per_group, head_dim = draw.choice([(1, 5, 4), (2, 3, 4), (5, 1, 6), (3, 2, 2)])
        kv_heads, per_kv, bias = draw.choice([4, 5]), draw.choice([1, 3]), draw.random() < 0.5
        return common | {
            "hidden_size": draw.randrange(9, 50), "num_hidden_layers": draw.randrange(1, 4),
            "mamba_d_ssm": groups * per_group * head_dim, "mamba_n_heads": groups * per_group,
            "mamba_n_groups": groups, "mamba_d_state": draw.randrange(1, 8),
            "mamba_d_conv": draw.randrange(2, 5), "mamba_rms_norm": draw.random() < 0.5,
            "mamba_norm_before_gate": draw.random() < 0.5, "mamba_proj_bias": bias,
            "projectors_bias": bias, "mamba_conv_bias": draw.random() < 0.5,
            "num_attention_heads": kv_heads * per_kv, "num_key_value_heads": kv_heads,
            "head_dim": 2 * draw.randrange(2, 6), "attention_bias": draw.random() < 0.5,
            "mlp_bias": draw.random() < 0.5, "intermediate_size": draw.randrange(8, 50),
            "ssm_multipliers": [draw.uniform(0.3, 1.5) for _ in range(5)],
            "mlp_multipliers": [draw.uniform(0.3, 1.5) for _ in range(2)],
        }  # fmt: skip
    common |= {
        "conv_kernel": draw.randrange(2, 5), "state_size": draw.randrange(1, 9),
        "use_bias": draw.random() < 0.5, "use_conv_bias": draw.random() < 0.5,
        "residual_in_fp32": draw.random() < 0.5,
    }  # fmt: skip
    if family == "mamba2":
        groups, per_group, head_dim = draw.choice([(1, 5, 4), (2, 3, 4), (5, 1, 6), (3, 2, 2)])
        heads = groups * per_group
        return common | {
            "n_groups": groups, "num_heads": heads, "head_dim": head_dim,
            "hidden_size": heads * head_dim // 2, "chunk_size": draw.randrange(4, 20),
        }  # fmt: skip
    return common | {"hidden_size": width, "time_step_rank": draw.randrange(1, 8)}
