"""What llama.cpp's `nemotron_h` and `nemotron_h_moe` have beside mixers.

A layer is attention where it has key-value heads, an MLP or experts where it has an inner width,
and a mixer where it has neither. Keys for rotary positions may be there; no position enters.
"""

from collections.abc import Collection

from sidewinder.activations import SQUARED_RELU
from sidewinder.checkpoint.config_values import ConfigValues
from sidewinder.checkpoint.gguf_hybrids import (
    Parts,
    expert_counts,
    per_layer,
    routed_layers,
    scale_of,
    the_one,
)
from sidewinder.checkpoint.nemotron import check_groups
from sidewinder.model_config import AttentionConfig, ExpertsConfig, MLPConfig, RouterConfig


def nemotron(values: ConfigValues, arch: str, tensors: Collection[str], n_layers: int) -> Parts:
    """Of both architectures, by the names of all tensors.

    Raises:
        ValueError: if sizes do not fit each other, a layer is two things at once or none has a
            mixer, or the file holds layers for multi-token prediction.
    """
    if predicting := values.size(f"{arch}.nextn_predict_layers", 0, minimum=0):
        raise values.error(
            f"{arch}.nextn_predict_layers={predicting} (multi-token prediction) is not supported; "
            "take a file without those layers (llama.cpp's converter leaves them out: --no-mtp)"
        )
    kv_heads = per_layer(values, f"{arch}.attention.head_count_kv", n_layers)
    widths = per_layer(values, f"{arch}.feed_forward_length", n_layers)
    attending = tuple(layer for layer, count in enumerate(kv_heads) if count)
    wide = tuple(layer for layer, width in enumerate(widths) if width)
    if both := {*attending} & {*wide}:
        raise values.error(
            f"layer {min(both)} has both key-value heads and an inner width "
            f"({arch}.attention.head_count_kv, .feed_forward_length); a layer can have one of them"
        )
    if len(attending) + len(wide) == n_layers:
        raise values.error("no layer has a mixer; a hybrid needs at least one Mamba-2 layer")
    routed = routed_layers(tensors, n_layers)
    if without := {*routed} - {*wide}:
        raise values.error(
            f"layer {min(without)} has a router, and {arch}.feed_forward_length says 0 of it"
        )
    dense = tuple(layer for layer in wide if layer not in routed)
    return Parts(
        attention=_attention(values, arch, tensors, attending, kv_heads) if attending else None,
        mlp=_mlp(values, arch, tensors, dense, widths) if dense else None,
        experts=_experts(values, arch, routed) if routed else None,
    )


def head_dim_of(values: ConfigValues, arch: str, n_heads: int) -> int:
    """The width of a head, of queries, keys and values alike."""
    d_model = values.size(f"{arch}.embedding_length", None)
    key, value = (f"{arch}.attention.{name}_length" for name in ("key", "value"))
    if key not in values:
        return d_model // values.divisor(
            f"{arch}.attention.head_count", n_heads, f"{arch}.embedding_length", d_model
        )
    head_dim = values.size(key, None)
    if values.size(value, head_dim) != head_dim:
        raise values.error(f"{value}={values.get(value)} is not {key} ({head_dim})")
    return head_dim


def _attention(
    values: ConfigValues,
    arch: str,
    tensors: Collection[str],
    layers: tuple[int, ...],
    kv_heads: list[int],
) -> AttentionConfig:
    """Without positions."""
    n_heads = values.size(f"{arch}.attention.head_count", None)
    key = f"{arch}.attention.head_count_kv"
    n_kv_heads = the_one(values, key, kv_heads)
    if n_heads % n_kv_heads:
        raise values.error(f"{key}={n_kv_heads} does not divide head_count ({n_heads})")
    head_dim = head_dim_of(values, arch, n_heads)
    use_bias = f"blk.{layers[0]}.attn_q.bias" in tensors
    return AttentionConfig(layers, n_heads, n_kv_heads, head_dim, head_dim**-0.5, use_bias=use_bias)


def _mlp(
    values: ConfigValues,
    arch: str,
    tensors: Collection[str],
    layers: tuple[int, ...],
    widths: list[int],
) -> MLPConfig:
    key = f"{arch}.feed_forward_length"
    return MLPConfig(
        d_ff=the_one(values, key, [widths[layer] for layer in layers]),
        activation=SQUARED_RELU,
        use_bias=f"blk.{layers[0]}.ffn_up.bias" in tensors,
        gated=False,
        layers=layers,
    )


def _experts(values: ConfigValues, arch: str, layers: tuple[int, ...]) -> ExpertsConfig:
    """Maybe of a narrower stream; one more beside them, which every token has."""
    n_experts, n_chosen = expert_counts(values, arch)
    groups, groups_chosen = f"{arch}.expert_group_count", f"{arch}.expert_group_used_count"
    router = RouterConfig(
        n_chosen=n_chosen,
        scores="sigmoid",
        has_bias=True,
        normalised=values.flag(f"{arch}.expert_weights_norm", False),
        scale=scale_of(values, f"{arch}.expert_weights_scale", 1.0),
        n_groups=values.divisor(groups, 1, f"{arch}.expert_count", n_experts),
        n_groups_chosen=values.size(groups_chosen, 1),
    )
    check_groups(values, router, n_experts, (groups, groups_chosen, f"{arch}.expert_used_count"))
    return ExpertsConfig(
        layers=layers,
        n_experts=n_experts,
        d_ff=values.size(f"{arch}.expert_feed_forward_length", None),
        router=router,
        activation=SQUARED_RELU,
        gated=False,
        shared_d_ff=values.size(f"{arch}.expert_shared_feed_forward_length", None),
        d_latent=values.size(f"{arch}.moe_latent_size", 0, minimum=0),
    )
