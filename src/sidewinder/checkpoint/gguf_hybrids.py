"""What llama.cpp's `jamba` and `granitehybrid` have beside mixers: attention, MLPs and experts."""

from collections.abc import Collection

from sidewinder.checkpoint.config_values import MOST_EXPERTS, ConfigValues
from sidewinder.model_config import AttentionConfig, ExpertsConfig, MLPConfig, RouterConfig


def attention_of(
    values: ConfigValues, arch: str, d_model: int, n_layers: int
) -> AttentionConfig | None:
    """The layers that have key-value heads; None where there are none. No positions, no biases.

    Raises:
        ValueError: if sizes do not fit each other, or every layer attends.
    """
    key = f"{arch}.attention.head_count_kv"
    counts = values.get(key)
    known = isinstance(counts, list) and all(isinstance(count, int) for count in counts)
    if not known or len(counts) != n_layers:
        raise values.error(f"{key} is no list of {n_layers} numbers, one for each layer")
    layers = tuple(layer for layer, count in enumerate(counts) if count)
    if not layers:
        return None
    if len(layers) == n_layers:
        raise values.error(f"{key}: every layer attends; a hybrid needs at least one Mamba layer")
    if len({counts[layer] for layer in layers}) > 1:
        raise values.error(f"{key}={counts} must be one number wherever it is not 0")
    rotated = f"{arch}.rope.scaling.finetuned"  # where it is missing, llama.cpp's Granite rotates
    if arch == "granitehybrid" and values.flag(rotated, True):
        raise values.error(f"{rotated} is not false: rotary positions (Bamba's) are not supported")
    name = f"{arch}.attention.head_count"
    n_heads = values.divisor(name, None, f"{arch}.embedding_length", d_model)
    n_kv_heads = counts[layers[0]]
    if n_kv_heads < 0 or n_heads % n_kv_heads:
        raise values.error(f"{key}={n_kv_heads} does not divide head_count ({n_heads})")
    head_dim = d_model // n_heads
    scale = scale_of(values, f"{arch}.attention.scale", head_dim**-0.5)
    return AttentionConfig(layers, n_heads, n_kv_heads, head_dim, scale)


def scale_of(values: ConfigValues, key: str, default: float) -> float:
    """A multiplier or divisor; 0 counts as absent."""
    return values.non_negative(key, 0.0) or default


def experts_of(
    values: ConfigValues, arch: str, tensors: Collection[str], n_layers: int
) -> ExpertsConfig | None:
    """The layers that have a router; None where there are none."""
    routers = (f"blk.{layer}.ffn_gate_inp.weight" for layer in range(n_layers))
    layers = tuple(layer for layer, router in enumerate(routers) if router in tensors)
    if not layers:
        return None
    n_experts = values.size(f"{arch}.expert_count", None, maximum=MOST_EXPERTS)
    n_chosen = values.size(f"{arch}.expert_used_count", None)
    if n_chosen > n_experts:
        raise values.error(f"{arch}.expert_used_count={n_chosen} is above expert_count={n_experts}")
    return ExpertsConfig(
        layers=layers,
        n_experts=n_experts,
        d_ff=values.size(f"{arch}.feed_forward_length", None),
        # Jamba's shares are a softmax over all experts, Granite's over those that are chosen.
        router=RouterConfig(n_chosen, normalised=arch == "granitehybrid"),
        activation="silu",
        shared_d_ff=values.size(f"{arch}.expert_shared_feed_forward_length", 0, minimum=0),
    )


def mlp_of(values: ConfigValues, arch: str, n_dense: int) -> MLPConfig | None:
    """Of the `n_dense` layers without experts."""
    return MLPConfig(values.size(f"{arch}.feed_forward_length", None), "silu") if n_dense else None
