"""Random configurations on which models are compared with transformers, valid for tp 1 to 4."""

import random
from collections.abc import Callable
from typing import Any

from sidewinder.testing import TINY

MAMBA2_HEADS = [(1, 5, 4), (2, 3, 4), (5, 1, 6), (3, 2, 2)]
"""Groups, heads of a group, and channels of a head."""
NEMOTRON_KINDS = ("linear_attention", "full_attention", "mlp")


def random_case(family: str, seed: int) -> dict[str, Any]:
    """Random odd sizes of `family`."""
    draw = random.Random(f"{family}-{seed}")
    if family.endswith("_experts"):
        return random_case(TINY[family]["model_type"], seed) | _experts(family, draw)
    width = draw.randrange(9, 27)
    common = {"vocab_size": draw.randrange(30, 90), "tie_word_embeddings": draw.random() < 0.5}
    if family in HYBRIDS:
        return common | HYBRIDS[family](draw)
    common |= {
        "conv_kernel": draw.randrange(2, 5), "state_size": draw.randrange(1, 9),
        "use_bias": draw.random() < 0.5, "use_conv_bias": draw.random() < 0.5,
        "residual_in_fp32": draw.random() < 0.5,
    }  # fmt: skip
    if family == "mamba2":
        return common | _mamba2(draw)
    return common | {"hidden_size": width, "time_step_rank": draw.randrange(1, 8)}


def _mamba2(draw: random.Random) -> dict[str, Any]:
    groups, per_group, head_dim = draw.choice(MAMBA2_HEADS)
    heads = groups * per_group
    return {
        "n_groups": groups, "num_heads": heads, "head_dim": head_dim,
        "hidden_size": heads * head_dim // 2, "chunk_size": draw.randrange(4, 20),
    }  # fmt: skip


def _zamba(draw: random.Random) -> dict[str, Any]:
    heads, per_kv = draw.choice([4, 5]), draw.choice([1, 2])
    return {
        "hidden_size": heads * per_kv * 4,
        "num_attention_heads": heads * per_kv, "num_key_value_heads": heads,
        "n_mamba_heads": draw.choice([1, 2, 4]), "mamba_d_state": draw.randrange(1, 8),
        "mamba_dt_rank": draw.randrange(1, 7), "mamba_d_conv": draw.randrange(2, 5),
        "intermediate_size": draw.randrange(8, 50), "mamba_proj_bias": draw.random() < 0.5,
    }  # fmt: skip


def _zamba2(draw: random.Random) -> dict[str, Any]:
    groups, mamba_heads = draw.choice([(1, 5), (2, 4), (2, 10), (5, 5), (4, 8)])
    heads, adapted = draw.choice([4, 5]), draw.random() < 0.5
    more = {} if adapted else {"attention_head_dim": 2 * draw.randrange(2, 6)}
    kinds = ["hybrid", "hybrid", *draw.choices(["mamba", "hybrid"], k=3)]
    return more | {
        "hidden_size": 20 * draw.choice([1, 2]), "num_hidden_layers": 5,
        "layers_block_type": draw.sample(kinds, 5), "num_mem_blocks": draw.randrange(1, 5),
        "num_attention_heads": heads, "use_shared_attention_adapter": adapted,
        "use_mem_rope": draw.random() < 0.5, "adapter_rank": draw.randrange(1, 9),
        "n_mamba_heads": mamba_heads, "mamba_ngroups": groups,
        "mamba_d_state": draw.randrange(1, 8), "mamba_d_conv": draw.randrange(2, 5),
        "intermediate_size": draw.randrange(8, 50), "chunk_size": draw.randrange(4, 20),
        "add_bias_linear": draw.random() < 0.5, "time_step_min": draw.choice([0.001, 0.1]),
    }  # fmt: skip


def _mixer_or_attention(draw: random.Random) -> tuple[dict[str, Any], list[int]]:
    """What Bamba and Granite share, and which layers attend."""
    groups, per_group, head_dim = draw.choice(MAMBA2_HEADS)
    kv_heads, per_kv = draw.choice([4, 5]), draw.choice([1, 3])
    common = {
        "hidden_size": groups * per_group * head_dim // 2, "mamba_n_groups": groups,
        "mamba_n_heads": groups * per_group, "mamba_chunk_size": draw.randrange(4, 20),
        "mamba_d_state": draw.randrange(1, 8), "mamba_d_conv": draw.randrange(2, 5),
        "num_attention_heads": kv_heads * per_kv, "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw.randrange(2, 6), "attention_bias": draw.random() < 0.5,
        "mamba_proj_bias": draw.random() < 0.5, "mamba_conv_bias": draw.random() < 0.5,
    }  # fmt: skip
    attends = sorted(draw.sample(range(5), draw.randrange(1, 4)))
    return common, attends


def _bamba(draw: random.Random) -> dict[str, Any]:
    common, attends = _mixer_or_attention(draw)
    return common | {
        "attn_layer_indices": attends, "intermediate_size": draw.randrange(8, 50),
        "mlp_bias": draw.random() < 0.5,
    }  # fmt: skip


def _granite(draw: random.Random) -> dict[str, Any]:
    common, attends = _mixer_or_attention(draw)
    kinds = ["attention" if layer in attends else "mamba" for layer in range(5)]
    return common | {
        "layer_types": kinds, "num_hidden_layers": 5,
        "shared_intermediate_size": draw.randrange(8, 50),
        "position_embedding_type": draw.choice([None, "nope", "rope"]),
        "residual_multiplier": draw.choice([0.22, 1.0]),
    }  # fmt: skip


def _nemotron_h(draw: random.Random) -> dict[str, Any]:
    groups, per_group, head_dim = draw.choice(MAMBA2_HEADS)
    kv_heads, per_kv = draw.choice([4, 5]), draw.choice([1, 3])
    kinds = ["linear_attention", *draw.choices(NEMOTRON_KINDS, k=4)]
    return {
        "hidden_size": draw.randrange(9, 50), "layers_block_type": draw.sample(kinds, 5),
        "mamba_num_heads": groups * per_group, "mamba_head_dim": head_dim, "n_groups": groups,
        "ssm_state_size": draw.randrange(1, 8), "conv_kernel": draw.randrange(2, 5),
        "num_attention_heads": kv_heads * per_kv, "num_key_value_heads": kv_heads,
        "head_dim": draw.randrange(4, 12), "intermediate_size": draw.randrange(8, 50),
        "use_bias": draw.random() < 0.5, "use_conv_bias": draw.random() < 0.5,
        "mlp_bias": draw.random() < 0.5, "time_step_min": draw.choice([0.001, 0.1]),
    }  # fmt: skip


def _jamba(draw: random.Random) -> dict[str, Any]:
    kv_heads, per_kv = draw.choice([1, 2, 4, 5]), draw.choice([4, 5])
    period = draw.randrange(2, 6)
    return {
        "hidden_size": kv_heads * per_kv * draw.randrange(1, 4), "num_hidden_layers": 5,
        "num_attention_heads": kv_heads * per_kv, "num_key_value_heads": kv_heads,
        "attn_layer_period": period, "attn_layer_offset": draw.randrange(period),
        "mamba_d_state": draw.randrange(1, 9), "mamba_d_conv": draw.randrange(2, 5),
        "mamba_dt_rank": draw.randrange(1, 8), "mamba_expand": draw.randrange(1, 4),
        "mamba_proj_bias": draw.random() < 0.5, "mamba_conv_bias": draw.random() < 0.5,
        "intermediate_size": draw.randrange(8, 50), "rms_norm_eps": draw.choice([1e-6, 0.1]),
    }  # fmt: skip


def _falcon_h1(draw: random.Random) -> dict[str, Any]:
    groups, per_group, head_dim = draw.choice(MAMBA2_HEADS)
    kv_heads, per_kv, bias = draw.choice([4, 5]), draw.choice([1, 3]), draw.random() < 0.5
    return {
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


HYBRIDS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "zamba": _zamba,
    "zamba2": _zamba2,
    "bamba": _bamba,
    "granitemoehybrid": _granite,
    "nemotron_h": _nemotron_h,
    "jamba": _jamba,
    "falcon_h1": _falcon_h1,
}


def _experts(family: str, draw: random.Random) -> dict[str, Any]:
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
