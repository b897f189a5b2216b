"""What llama.cpp's `jamba` has beside its mixers: attention, MLPs and experts."""

from collections.abc import Collection

from sidewinder.checkpoint.config_values import MOST_EXPERTS, ConfigValues
from sidewinder.model_config import AttentionConfig, ExpertsConfig, MLPConfig, RouterConfig


def jamba_attention(values: ConfigValues, d_model: int, n_layers: int) -> AttentionConfig | None:
    """The layers that have key-value heads; None where there are none. No positions, no biases.

    Raises:
        ValueError: if sizes do not fit each other, or every layer attends.
    """
    key = "jamba.attention.head_count_kv"
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
    n_heads = values.divisor("jamba.attention.head_count", None, "jamba.embedding_length", d_model)
    n_kv_heads = counts[layers[0]]
    if n_kv_heads < 0 or n_heads % n_kv_heads:
        raise values.error(f"{key}={n_kv_heads} does not divide head_count ({n_heads})")
    head_dim = d_model // n_heads
    return AttentionConfig(layers, n_heads, n_kv_heads, head_dim, scale=head_dim**-0.5)


def jamba_experts(
    values: ConfigValues, tensors: Collection[str], n_layers: int
) -> ExpertsConfig | None:
    """The layers that have a router; None where there are none."""
    routers = (f"blk.{layer}.ffn_gate_inp.weight" for layer in range(n_layers))
    layers = tuple(layer for layer, router in enumerate(routers) if router in tensors)
    if not layers:
        return None
    n_experts = values.size("jamba.expert_count", None, maximum=MOST_EXPERTS)
    n_chosen = values.size("jamba.expert_used_count", None)
    if n_chosen > n_experts:
        raise values.error(f"jamba.expert_used_count={n_chosen} is above expert_count={n_experts}")
    return ExpertsConfig(
        layers=layers,
        n_experts=n_experts,
        d_ff=values.size("jamba.feed_forward_length", None),
        # The shares are a softmax over all experts, of which only some are taken.
        router=RouterConfig(n_chosen, normalised=False),
        activation="silu",
    )


def jamba_mlp(values: ConfigValues, n_dense: int) -> MLPConfig | None:
    """Of the `n_dense` layers without experts."""
    return MLPConfig(values.size("jamba.feed_forward_length", None), "silu") if n_dense else None
