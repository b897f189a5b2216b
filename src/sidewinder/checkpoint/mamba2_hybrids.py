"""From `config.json` to a `ModelConfig`, for hybrids of Mamba-2 mixers and attention: Bamba and
Granite-4.0-H.
"""

from dataclasses import replace

from sidewinder.activations import SILU_IN_CHECKPOINTS
from sidewinder.checkpoint.config_values import MOST_EXPERTS, UNLIMITED, ConfigValues
from sidewinder.config import ModelConfig
from sidewinder.model_config import (
    AttentionConfig,
    ExpertsConfig,
    Family,
    MLPConfig,
    RotaryConfig,
    RouterConfig,
)

MIXER_NAMES, ATTENTION_NAMES = ("mamba", "linear_attention"), ("attention", "full_attention")
"""What layers are called, in older and newer files."""

BAMBA_KV_HEADS, BAMBA_ROTARY_SHARE = 8, 0.5
"""Where a file does not say; `num_key_value_heads: null` is one for each query head, though."""

RESIDUAL_MULTIPLIERS = 1e-6, 1e6
"""Far beyond any model's; the square of this one's inverse scales `eps`, which is a float32."""


def bamba(values: ConfigValues) -> ModelConfig:
    """Bamba."""
    config = _hybrid(values, "bamba", vocab_size=128000, norm_eps=1e-5)
    attention = config.attention
    if attention is not None:
        if "num_key_value_heads" not in values:
            attention = replace(attention, n_kv_heads=_default_kv_heads(values, attention.n_heads))
        rotary = _rotary(values, attention.head_dim, BAMBA_ROTARY_SHARE)
        attention = replace(attention, rotary=rotary)
    d_ff = values.size("intermediate_size", 14336)
    mlp = MLPConfig(d_ff, "silu", values.flag("mlp_bias", False))
    return replace(config, attention=attention, mlp=mlp)


def _default_kv_heads(values: ConfigValues, n_heads: int) -> int:
    if n_heads % BAMBA_KV_HEADS:
        raise values.error(
            f"num_key_value_heads is missing; the default, {BAMBA_KV_HEADS}, does not divide "
            f"num_attention_heads ({n_heads})"
        )
    return BAMBA_KV_HEADS


def granite(values: ConfigValues) -> ModelConfig:
    """Granite-4.0-H."""
    config = _hybrid(values, "granitemoehybrid", vocab_size=32000, norm_eps=1e-6)
    attention, positions = config.attention, values.get("position_embedding_type")
    if positions is not None:
        positions = values.choice("position_embedding_type", None, ("rope", "nope"))
    if attention is not None:
        attention = replace(attention, scale=values.positive("attention_multiplier", 1.0))
        if positions == "rope":
            rotary = whole_rotary(values, attention.head_dim, "Granite")
            attention = replace(attention, rotary=rotary)
    experts, shared = _granite_experts(values, config.n_layers), _granite_mlp(values)
    return replace(
        config,
        attention=attention,
        mlp=shared if experts is None else None,
        experts=None if experts is None else replace(experts, shared_d_ff=shared.d_ff),
        embedding_multiplier=values.positive("embedding_multiplier", 1.0),
        residual_multiplier=residual_multiplier(
            values, "residual_multiplier", values.positive("residual_multiplier", 1.0)
        ),
        logits_divisor=values.positive("logits_scaling", 1.0),
    )


def _granite_mlp(values: ConfigValues) -> MLPConfig:
    """Of the dense models; with experts every layer has it beside them."""
    return MLPConfig(values.size("shared_intermediate_size", 1024), "silu")


def _granite_experts(values: ConfigValues, n_layers: int) -> ExpertsConfig | None:
    """In every layer, if at all."""
    n_experts = values.size("num_local_experts", 8, minimum=0, maximum=MOST_EXPERTS)
    if not n_experts:
        return None
    return ExpertsConfig(
        layers=tuple(range(n_layers)),
        n_experts=n_experts,
        d_ff=values.size("intermediate_size", 11008),
        router=RouterConfig(n_chosen=chosen_experts(values, n_experts)),
        activation="silu",
    )


def chosen_experts(values: ConfigValues, n_experts: int) -> int:
    """How many of `n_experts` a token has."""
    n_chosen = values.size("num_experts_per_tok", 2)
    if n_chosen > n_experts:
        raise values.error(f"num_experts_per_tok={n_chosen} is more than the {n_experts} experts")
    return n_chosen


def residual_multiplier(values: ConfigValues, name: str, multiplier: float) -> float:
    """The `multiplier` that `name` says, checked."""
    low, high = RESIDUAL_MULTIPLIERS
    if not low <= multiplier <= high:
        raise values.error(
            f"{name}={multiplier} is not between {low:g} and {high:.0f}: the residual "
            "stream is kept divided by it"
        )
    return multiplier


def _hybrid(values: ConfigValues, family: Family, vocab_size: int, norm_eps: float) -> ModelConfig:
    """What both have; defaults that differ are given."""
    # One name for the activations of the convolution and of the MLP; the kernels have this one.
    values.choice("hidden_act", "silu", SILU_IN_CHECKPOINTS)
    d_model, n_layers = values.size("hidden_size", 4096), values.size("num_hidden_layers", 32)
    d_inner = values.scaled("mamba_expand", 2, d_model)
    n_heads = mamba2_heads(values, d_inner)
    return ModelConfig(
        family=family,
        layout="transformers",
        vocab_size=values.size("vocab_size", vocab_size),
        d_model=d_model,
        n_layers=n_layers,
        d_inner=d_inner,
        d_state=values.size("mamba_d_state", 256),
        d_conv=values.size("mamba_d_conv", 4, minimum=2),
        dt_rank=0,
        n_heads=n_heads,
        n_groups=values.divisor("mamba_n_groups", 1, "mamba_n_heads", n_heads),
        norm_eps=values.positive("rms_norm_eps", norm_eps),
        mixer_norm_eps=None,
        use_bias=values.flag("mamba_proj_bias", False),
        use_conv_bias=values.flag("mamba_conv_bias", True),
        gated_norm=True,
        norm_before_gate=False,
        time_step_limit=values.limits("time_step_limit", UNLIMITED),
        residual_in_fp32=False,
        tie_embeddings=values.flag("tie_word_embeddings", False),
        dtype=values.dtype(),
        eos_token_ids=values.tokens("eos_token_id", 2),
        attention=_attention(values, d_model, n_layers),
    )


def mamba2_heads(values: ConfigValues, d_inner: int) -> int:
    """The number of SSM heads, which `mamba_d_head` must agree with; "auto" does."""
    n_heads = values.divisor("mamba_n_heads", 128, "the inner width", d_inner)
    if values.get("mamba_d_head") not in (None, "auto"):
        head_dim = values.size("mamba_d_head", None)
        if n_heads * head_dim != d_inner:
            raise values.error(
                f"mamba_n_heads ({n_heads}) times mamba_d_head ({head_dim}) must be the inner "
                f"width ({d_inner})"
            )
    return n_heads


def _attention(values: ConfigValues, d_model: int, n_layers: int) -> AttentionConfig | None:
    """With Bamba's scale, without positions. None where no layer attends: that is what a file means
    that names none."""
    layers = _attention_layers(values, n_layers)
    if not layers:
        return None
    n_heads = values.size("num_attention_heads", 32)
    head_dim = head_dim_of(values, d_model, n_heads)
    return AttentionConfig(
        layers=layers,
        n_heads=n_heads,
        n_kv_heads=values.divisor("num_key_value_heads", n_heads, "num_attention_heads", n_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        use_bias=values.flag("attention_bias", False),
    )


def head_dim_of(values: ConfigValues, d_model: int, n_heads: int) -> int:
    if values.get("head_dim") is not None:
        return values.size("head_dim", None)
    if d_model % n_heads:
        raise values.error(
            f"num_attention_heads={n_heads} does not divide hidden_size ({d_model}), and there is "
            "no head_dim"
        )
    return d_model // n_heads


def _attention_layers(values: ConfigValues, n_layers: int) -> tuple[int, ...]:
    """Layers with attention instead of a mixer: by index, or by the kinds of all layers."""
    indices = values.get("attn_layer_indices")
    listed = isinstance(indices, list) and all(
        type(index) is int and 0 <= index < n_layers for index in indices
    )
    if indices is not None and not listed:
        raise values.error(
            f"attn_layer_indices={indices!r} must list layers from 0 to {n_layers - 1}"
        )
    found = None if indices is None else tuple(sorted(set(indices)))
    for name in ("layers_block_type", "layer_types"):
        kinds = values.get(name)
        if kinds is None:
            continue
        layers = _layers_of(values, name, kinds, n_layers)
        if found is not None and found != layers:
            raise values.error(
                f"{name} says that layers {list(layers)} attend, and another key that layers "
                f"{list(found)} do; leave out one of them"
            )
        found = layers
    if found is not None and len(found) == n_layers:
        raise values.error("every layer attends; a hybrid needs at least one Mamba-2 layer")
    return found or ()


def _layers_of(values: ConfigValues, name: str, kinds: object, n_layers: int) -> tuple[int, ...]:
    known = (*MIXER_NAMES, *ATTENTION_NAMES)
    if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
        raise values.error(f"{name}={kinds!r} may only list {', '.join(known)}")
    if len(kinds) != n_layers:
        raise values.error(f"{name} lists {len(kinds)} layers instead of {n_layers}")
    return tuple(layer for layer, kind in enumerate(kinds) if kind in ATTENTION_NAMES)


def _rotary(values: ConfigValues, head_dim: int, share: float) -> RotaryConfig:
    """Rotary positions: newer files have `rope_parameters`, older ones `rope_theta` and
    `rope_scaling`; `share` of a head's channels rotate where the file does not say.

    Only what is in `rope_parameters` or `rope_scaling` can say it: Bamba overrules a
    `partial_rotary_factor` beside them.
    """
    name = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.section(name)
    nested = [kind for kind in rope.names() if kind in (*MIXER_NAMES, *ATTENTION_NAMES)]
    if nested:
        raise rope.error(
            f"parameters by kind of layer ({nested[0]}) are not supported; give one set"
        )
    key = "rope_type" if rope.get("rope_type") is not None else "type"
    rope.choice(key, "default", ("default",))
    theta = rope.positive("rope_theta", values.positive("rope_theta", 10000.0))
    share = rope.positive("partial_rotary_factor", share)
    width = int(head_dim * share)
    if width < 1 or width + width % 2 > head_dim:
        raise rope.error(
            f"partial_rotary_factor={share} of heads of {head_dim} rotates {width} channels; they "
            "are rotated in pairs, at least one and no more than a head has"
        )
    return RotaryConfig(theta, width)


def whole_rotary(values: ConfigValues, head_dim: int, family: str) -> RotaryConfig:
    """The rotary positions of families that turn all channels whatever the file says."""
    rotary = _rotary(values, head_dim, 1.0)
    if rotary.width != head_dim:
        raise values.error(
            f"partial_rotary_factor turns {rotary.width} of a head's {head_dim} channels, and in "
            f"{family} all of them turn; leave it out"
        )
    return rotary
