"""From `config.json` to a `ModelConfig`, for Zamba2: Mamba-2 mixers, and shared blocks in turn.

Read by nothing in transformers 5.23, and so not here: `use_conv_bias` (there always is one),
`time_step_limit`, and what `use_long_context` says of positions: it changes none.
"""

import math

from sidewinder.activations import IN_CHECKPOINTS
from sidewinder.checkpoint.config_values import ConfigValues
from sidewinder.checkpoint.mamba2_hybrids import whole_rotary
from sidewinder.config import ModelConfig
from sidewinder.model_config import AttentionConfig, MLPConfig

GATED_NORM_EPS = 1e-5
"""Of the mixers' gated norm, whatever `rms_norm_eps` is."""

HYBRID_LAYERS = (6, 12, 18, 24, 30, 36, 42, 47, 51)
"""Of the 54 layers that a file means that lists none."""


def zamba2(values: ConfigValues) -> ModelConfig:
    """Zamba2."""
    d_model, n_layers = values.size("hidden_size", 2560), values.size("num_hidden_layers", 54)
    d_inner = values.scaled("mamba_expand", 2, d_model)
    n_heads = _mamba2_heads(values, d_inner)
    if not values.flag("use_shared_mlp_adapter", True):
        raise values.error(
            "use_shared_mlp_adapter=false is not supported: in transformers the MLPs of shared "
            "blocks always have adapters"
        )
    bias = values.flag("add_bias_linear", False)
    return ModelConfig(
        family="zamba2",
        layout="transformers",
        vocab_size=values.size("vocab_size", 32000),
        d_model=d_model,
        n_layers=n_layers,
        d_inner=d_inner,
        d_state=values.size("mamba_d_state", 64),
        d_conv=values.size("mamba_d_conv", 4, minimum=2),
        dt_rank=0,
        n_heads=n_heads,
        n_groups=values.divisor("mamba_ngroups", 1, "n_mamba_heads", n_heads),
        norm_eps=values.positive("rms_norm_eps", 1e-5),
        mixer_norm_eps=GATED_NORM_EPS,
        use_bias=bias,
        use_conv_bias=True,
        gated_norm=True,
        norm_before_gate=False,
        time_step_limit=(values.non_negative("time_step_min", 0.001), math.inf),
        residual_in_fp32=False,
        tie_embeddings=values.flag("tie_word_embeddings", True),
        dtype=values.dtype(),
        eos_token_ids=values.tokens("eos_token_id", 2),
        attention=_attention(values, d_model, _hybrid_layers(values, n_layers)),
        mlp=MLPConfig(
            d_ff=values.size("intermediate_size", 4 * d_model),
            activation=mlp_activation(values),
            use_bias=bias,
            adapter_rank=values.size("adapter_rank", 128),
        ),
    )


def mlp_activation(values: ConfigValues) -> str:
    """What the MLP of a shared block activates its gate with."""
    return IN_CHECKPOINTS[values.choice("hidden_act", "gelu", tuple(IN_CHECKPOINTS))]


def wide_input(values: ConfigValues, d_model: int) -> int:
    """Channels that a shared block sees: the residual stream and the embedding."""
    wide = values.size("attention_hidden_size", 2 * d_model)
    if wide != 2 * d_model:
        raise values.error(
            f"attention_hidden_size={wide} must be twice hidden_size ({2 * d_model})"
        )
    return wide


def listed_hybrids(values: ConfigValues, kinds: object, n_layers: int) -> tuple[int, ...]:
    """The layers of `kinds` that call a shared block; it must list `n_layers`, one hybrid."""
    known = ("mamba", "linear_attention", "hybrid")
    if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
        raise values.error(f"layers_block_type={kinds!r} may only list {', '.join(known)}")
    if len(kinds) != n_layers:
        raise values.error(f"layers_block_type lists {len(kinds)} layers instead of {n_layers}")
    layers = tuple(layer for layer, kind in enumerate(kinds) if kind == "hybrid")
    if not layers:
        model_type = values.get("model_type")
        raise values.error(f"no layer is hybrid; a {model_type} model needs at least one")
    return layers


def _mamba2_heads(values: ConfigValues, d_inner: int) -> int:
    """The number of SSM heads, which `mamba_headdim` must agree with."""
    n_heads = values.divisor("n_mamba_heads", 8, "the inner width", d_inner)
    head_dim = values.size("mamba_headdim", d_inner // n_heads)
    if n_heads * head_dim != d_inner:
        raise values.error(
            f"n_mamba_heads ({n_heads}) times mamba_headdim ({head_dim}) must be mamba_expand "
            f"times hidden_size ({d_inner})"
        )
    return n_heads


def _attention(values: ConfigValues, d_model: int, layers: tuple[int, ...]) -> AttentionConfig:
    wide, n_heads = wide_input(values, d_model), values.size("num_attention_heads", 32)
    n_kv_heads = values.divisor("num_key_value_heads", n_heads, "num_attention_heads", n_heads)
    name = "head_dim" if "head_dim" in values else "attention_head_dim"
    head_dim = values.size(name, wide // n_heads)
    adapted = values.flag("use_shared_attention_adapter", False)
    if adapted and (n_kv_heads != n_heads or n_heads * head_dim != wide):
        raise values.error(
            "use_shared_attention_adapter=true adds as many channels to q, k and v as a shared "
            f"block sees ({wide}), and they have {n_heads} and {n_kv_heads} heads of {head_dim}; "
            "only models are supported whose num_attention_heads, equal to num_key_value_heads, "
            "times the heads' width is twice hidden_size"
        )
    rotary = values.flag("use_mem_rope", False)
    values.flag("use_long_context", False)
    return AttentionConfig(
        layers=layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=(head_dim / 2) ** -0.5,
        shared=True,
        rotary=whole_rotary(values, head_dim, "Zamba2") if rotary else None,
        # Where layers are cut off, a block may be left without a call.
        n_blocks=min(values.size("num_mem_blocks", 1), len(layers)),
        adapter_rank=values.size("adapter_rank", 128) if adapted else 0,
    )


def _hybrid_layers(values: ConfigValues, n_layers: int) -> tuple[int, ...]:
    """Layers that call a shared block: listed by older or newer names, or those of the class."""
    kinds = values.get("layers_block_type") or values.get("layer_types")
    if kinds is None:
        kinds = ["hybrid" if layer in HYBRID_LAYERS else "mamba" for layer in range(54)]
    layers = listed_hybrids(values, kinds, n_layers)
    indices = values.get("hybrid_layer_ids")
    if indices is not None and indices != list(layers):
        raise values.error(
            f"hybrid_layer_ids={indices!r} are not the layers that layers_block_type calls hybrid, "
            f"{list(layers)}; leave it out"
        )
    return layers
