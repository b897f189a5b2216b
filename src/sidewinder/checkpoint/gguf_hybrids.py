"""What llama.cpp's `jamba` and `granitehybrid` have beside mixers: attention, MLPs and experts."""

from collections.abc import Collection
from dataclasses import dataclass

from sidewinder.checkpoint.config_values import MOST_EXPERTS, ConfigValues
from sidewinder.model_config import AttentionConfig, ExpertsConfig, MLPConfig, RouterConfig


@dataclass(frozen=True)
class Parts:
    """What a model has beside its mixers, as in `ModelConfig`."""

    attention: AttentionConfig | None = None
    mlp: MLPConfig | None = None
    experts: ExpertsConfig | None = None


def jamba_or_granite(
    values: ConfigValues, arch: str, tensors: Collection[str], n_layers: int
) -> Parts:
    """Of `jamba` and `granitehybrid`, by the names of all tensors.

    Raises:
        ValueError: if sizes do not fit each other, every layer attends, or positions are rotary.
    """
    experts = _experts(values, arch, tensors, n_layers)
    n_dense = n_layers - (len(experts.layers) if experts else 0)
    d_ff = values.size(f"{arch}.feed_forward_length", None)
    return Parts(
        attention=_attention(values, arch, n_layers),
        mlp=MLPConfig(d_ff, "silu") if n_dense else None,
        experts=experts,
    )


def per_layer(values: ConfigValues, key: str, n_layers: int) -> list[int]:
    """A number for each layer.

    Raises:
        ValueError: if it is none, or one of them is negative.
    """
    numbers = values.get(key)
    known = isinstance(numbers, list) and all(type(number) is int for number in numbers)
    if not known or len(numbers) != n_layers or min(numbers) < 0:
        raise values.error(f"{key} is no list of {n_layers} numbers, one for each layer")
    return list(numbers)


def the_one(values: ConfigValues, key: str, numbers: list[int]) -> int:
    """What all of `numbers` are that are not 0.

    Raises:
        ValueError: if they are not one number.
    """
    found = {number for number in numbers if number}
    if len(found) != 1:
        raise values.error(f"{key}={numbers} must be one number wherever it is not 0")
    return found.pop()


def routed_layers(tensors: Collection[str], n_layers: int) -> tuple[int, ...]:
    """The layers that have a router, and so experts."""
    routers = (f"blk.{layer}.ffn_gate_inp.weight" for layer in range(n_layers))
    return tuple(layer for layer, router in enumerate(routers) if router in tensors)


def expert_counts(values: ConfigValues, arch: str) -> tuple[int, int]:
    """How many experts a layer has, and how many of them a token."""
    n_experts = values.size(f"{arch}.expert_count", None, maximum=MOST_EXPERTS)
    n_chosen = values.size(f"{arch}.expert_used_count", None)
    if n_chosen > n_experts:
        raise values.error(f"{arch}.expert_used_count={n_chosen} is above expert_count={n_experts}")
    return n_experts, n_chosen


def scale_of(values: ConfigValues, key: str, default: float) -> float:
    """A multiplier or divisor; 0 counts as absent."""
    return values.non_negative(key, 0.0) or default


def _attention(values: ConfigValues, arch: str, n_layers: int) -> AttentionConfig | None:
    """The layers that have key-value heads; None where there are none. No positions, no biases."""
    key = f"{arch}.attention.head_count_kv"
    counts = per_layer(values, key, n_layers)
    layers = tuple(layer for layer, count in enumerate(counts) if count)
    if not layers:
        return None
    if len(layers) == n_layers:
        raise values.error(f"{key}: every layer attends; a hybrid needs at least one Mamba layer")
    rotated = f"{arch}.rope.scaling.finetuned"  # where it is missing, llama.cpp's Granite rotates
    if arch == "granitehybrid" and values.flag(rotated, True):
        raise values.error(f"{rotated} is not false: rotary positions (Bamba's) are not supported")
    d_model = values.size(f"{arch}.embedding_length", None)
    name = f"{arch}.attention.head_count"
    n_heads = values.divisor(name, None, f"{arch}.embedding_length", d_model)
    n_kv_heads = the_one(values, key, counts)
    if n_heads % n_kv_heads:
        raise values.error(f"{key}={n_kv_heads} does not divide head_count ({n_heads})")
    head_dim = d_model // n_heads
    scale = scale_of(values, f"{arch}.attention.scale", head_dim**-0.5)
    return AttentionConfig(layers, n_heads, n_kv_heads, head_dim, scale)


def _experts(
    values: ConfigValues, arch: str, tensors: Collection[str], n_layers: int
) -> ExpertsConfig | None:
    """The layers that have a router; None where there are none."""
    layers = routed_layers(tensors, n_layers)
    if not layers:
        return None
    n_experts, n_chosen = expert_counts(values, arch)
    return ExpertsConfig(
        layers=layers,
        n_experts=n_experts,
        d_ff=values.size(f"{arch}.feed_forward_length", None),
        # Jamba's shares are a softmax over all experts, Granite's over those that are chosen.
        router=RouterConfig(n_chosen, normalised=arch == "granitehybrid"),
        activation="silu",
        shared_d_ff=values.size(f"{arch}.expert_shared_feed_forward_length", 0, minimum=0),
    )
