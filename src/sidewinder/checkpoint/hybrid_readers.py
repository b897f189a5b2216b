"""From `config.json` to a `ModelConfig`, for transformers' hybrids of SSM mixers and attention."""

from collections.abc import Callable

from sidewinder.checkpoint.config_values import UNLIMITED, ConfigValues
from sidewinder.config import ModelConfig
from sidewinder.model_config import AttentionConfig, MLPConfig, RotaryConfig

MLP_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")
MIXER_NAMES, ATTENTION_NAMES = ("mamba", "linear_attention"), ("attention", "full_attention")
"""What layers are called, in older and newer files."""


def _zamba(values: ConfigValues) -> ModelConfig:
    values.choice("hidden_mamba_act", "silu", ("silu", "swish"))
    d_model, n_layers = values.size("hidden_size", 3712), values.size("num_hidden_layers", 76)
    d_inner = values.scaled("mamba_expand", 2, d_model)
    return ModelConfig(
        family="zamba",
        layout="transformers",
        vocab_size=values.size("vocab_size", 32000),
        d_model=d_model,
        n_layers=n_layers,
        d_inner=d_inner,
        d_state=values.size("mamba_d_state", 16),
        d_conv=values.size("mamba_d_conv", 4, minimum=2),
        dt_rank=values.rank("mamba_dt_rank", d_model),
        n_heads=values.divisor("n_mamba_heads", 2, "the inner width", d_inner),
        n_groups=1,
        norm_eps=values.positive("rms_norm_eps", 1e-5),
        mixer_norm_eps=None,
        use_bias=values.flag("mamba_proj_bias", False),
        use_conv_bias=values.flag("mamba_conv_bias", True),
        gated_norm=False,
        norm_before_gate=False,
        time_step_limit=UNLIMITED,
        residual_in_fp32=False,
        tie_embeddings=values.flag("tie_word_embeddings", True),
        dtype=values.dtype(),
        bos_token_id=values.token("bos_token_id", 1),
        eos_token_ids=values.tokens("eos_token_id", 2),
        attention=_zamba_attention(values, d_model, n_layers),
        mlp=_zamba_mlp(values),
    )


def _zamba_attention(values: ConfigValues, d_model: int, n_layers: int) -> AttentionConfig:
    n_heads = values.size("num_attention_heads", 16)
    wide = values.size("attention_hidden_size", 2 * d_model)
    if wide != 2 * d_model:
        raise values.error(
            f"attention_hidden_size={wide} must be twice hidden_size ({2 * d_model})"
        )
    head_dim = values.size("attention_head_dim", wide // n_heads)
    return AttentionConfig(
        layers=_zamba_layers(values, n_layers),
        n_heads=n_heads,
        n_kv_heads=values.divisor("num_key_value_heads", 16, "num_attention_heads", n_heads),
        head_dim=head_dim,
        scale=(head_dim / 2) ** -0.5,
        shared=True,
    )


def _zamba_mlp(values: ConfigValues) -> MLPConfig:
    activation = values.choice("hidden_act", "gelu", MLP_ACTIVATIONS)
    return MLPConfig(
        d_ff=values.size("intermediate_size", 14848),
        activation="silu" if activation == "swish" else activation,
    )


def _zamba_layers(values: ConfigValues, n_layers: int) -> tuple[int, ...]:
    """Layers that call the shared block: listed (older or newer names), or by period and offset."""
    kinds = values.get("layers_block_type") or values.get("layer_types")
    if kinds is None:
        period = values.size("attn_layer_period", 6)
        offset = values.size("attn_layer_offset", 4, minimum=0)
        # The first hybrid layer is always the third; the pattern starts after it.
        kinds = ["mamba", "mamba", "hybrid"] + [
            "hybrid" if layer % period == offset else "mamba" for layer in range(n_layers - 3)
        ]
    known = ("mamba", "linear_attention", "hybrid")
    if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
        raise values.error(f"layers_block_type={kinds!r} may only list {', '.join(known)}")
    if len(kinds) != n_layers:
        raise values.error(f"layers_block_type lists {len(kinds)} layers instead of {n_layers}")
    layers = tuple(layer for layer, kind in enumerate(kinds) if kind == "hybrid")
    if not layers:
        raise values.error("no layer is hybrid; a zamba model needs at least one")
    return layers


def _bamba(values: ConfigValues) -> ModelConfig:
    # One name for the activations of the convolution and of the MLP; the kernels have this one.
    values.choice("hidden_act", "silu", ("silu", "swish"))
    d_model, n_layers = values.size("hidden_size", 4096), values.size("num_hidden_layers", 32)
    d_inner = values.scaled("mamba_expand", 2, d_model)
    n_heads = _mamba2_heads(values, d_inner)
    return ModelConfig(
        family="bamba",
        layout="transformers",
        vocab_size=values.size("vocab_size", 128000),
        d_model=d_model,
        n_layers=n_layers,
        d_inner=d_inner,
        d_state=values.size("mamba_d_state", 256),
        d_conv=values.size("mamba_d_conv", 4, minimum=2),
        dt_rank=0,
        n_heads=n_heads,
        n_groups=values.divisor("mamba_n_groups", 1, "mamba_n_heads", n_heads),
        norm_eps=values.positive("rms_norm_eps", 1e-5),
        mixer_norm_eps=None,
        use_bias=values.flag("mamba_proj_bias", False),
        use_conv_bias=values.flag("mamba_conv_bias", True),
        gated_norm=True,
        norm_before_gate=False,
        time_step_limit=values.limits("time_step_limit", UNLIMITED),
        residual_in_fp32=False,
        tie_embeddings=values.flag("tie_word_embeddings", False),
        dtype=values.dtype(),
        bos_token_id=values.token("bos_token_id", 1),
        eos_token_ids=values.tokens("eos_token_id", 2),
        attention=_bamba_attention(values, d_model, n_layers),
        mlp=MLPConfig(
            values.size("intermediate_size", 14336), "silu", values.flag("mlp_bias", False)
        ),
    )


def _mamba2_heads(values: ConfigValues, d_inner: int) -> int:
    """The number of SSM heads, which `mamba_d_head` must agree with; "auto" does."""
    n_heads = values.divisor("mamba_n_heads", 128, "the inner width", d_inner)
    if values.get("mamba_d_head") not in (None, "auto"):
        head_dim = values.size("mamba_d_head", None)
        if n_heads * head_dim != d_inner:
            raise values.error(
                f"mamba_n_heads ({n_heads}) times mamba_d_head ({head_dim}) must be mamba_expand "
                f"times hidden_size ({d_inner})"
            )
    return n_heads


def _bamba_attention(values: ConfigValues, d_model: int, n_layers: int) -> AttentionConfig | None:
    """None where no layer attends: that is what a file means that names none."""
    layers = _attention_layers(values, n_layers)
    if not layers:
        return None
    n_heads = values.size("num_attention_heads", 32)
    head_dim = _head_dim(values, d_model, n_heads)
    # `num_key_value_heads: null` is a key-value head for each query; absent is the default.
    n_kv_heads = n_heads
    if "num_key_value_heads" not in values or values.get("num_key_value_heads") is not None:
        n_kv_heads = values.divisor("num_key_value_heads", 8, "num_attention_heads", n_heads)
    return AttentionConfig(
        layers=layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        use_bias=values.flag("attention_bias", False),
        rotary=_rotary(values, head_dim, share=0.5),
    )


def _head_dim(values: ConfigValues, d_model: int, n_heads: int) -> int:
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


HYBRIDS: dict[str, Callable[[ConfigValues], ModelConfig]] = {"zamba": _zamba, "bamba": _bamba}
"""By `model_type`."""
