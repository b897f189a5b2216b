"""From `config.json` to a `ModelConfig`, for Jamba: layers of a Mamba-1 mixer or attention, each
followed by an MLP or experts.

Read by nothing in transformers, and so not here: `sliding_window`, `mamba_inner_layernorms` of
older files (there are always norms inside), `layers_block_type` and `layer_types` (only periods and
offsets count), and what only initial weights, training or generation need.
"""

from sidewinder.activations import SILU_IN_CHECKPOINTS
from sidewinder.checkpoint.config_values import UNLIMITED, ConfigValues
from sidewinder.checkpoint.mamba2_hybrids import chosen_experts, head_dim_of
from sidewinder.config import ModelConfig
from sidewinder.model_config import AttentionConfig, ExpertsConfig, MLPConfig, RouterConfig

KV_HEADS = 8
"""Where a file does not say; `num_key_value_heads: null` is one for each query head, though."""


def jamba(values: ConfigValues) -> ModelConfig:
    """Jamba."""
    # One name for all activations; the kernels of the convolution have this one.
    values.choice("hidden_act", "silu", SILU_IN_CHECKPOINTS)
    d_model, n_layers = values.size("hidden_size", 4096), values.size("num_hidden_layers", 32)
    d_ff, eps = values.size("intermediate_size", 14336), values.positive("rms_norm_eps", 1e-6)
    experts = _experts(values, n_layers, d_ff)
    dense = n_layers - (0 if experts is None else len(experts.layers))
    return ModelConfig(
        family="jamba",
        layout="transformers",
        vocab_size=values.size("vocab_size", 65536),
        d_model=d_model,
        n_layers=n_layers,
        d_inner=values.scaled("mamba_expand", 2, d_model),
        d_state=values.size("mamba_d_state", 16),
        d_conv=values.size("mamba_d_conv", 4, minimum=2),
        dt_rank=values.rank("mamba_dt_rank", d_model),
        n_heads=1,
        n_groups=1,
        norm_eps=eps,
        mixer_norm_eps=eps,
        use_bias=values.flag("mamba_proj_bias", False),
        use_conv_bias=values.flag("mamba_conv_bias", True),
        gated_norm=False,
        norm_before_gate=False,
        time_step_limit=UNLIMITED,
        residual_in_fp32=False,
        tie_embeddings=values.flag("tie_word_embeddings", False),
        dtype=values.dtype(),
        eos_token_ids=values.tokens("eos_token_id", 2),
        attention=_attention(values, d_model, n_layers),
        mlp=MLPConfig(d_ff, "silu") if dense else None,
        experts=experts,
        mixer_norm_weights=True,
    )


def _periodic(
    values: ConfigValues, kind: str, n_layers: int, period: int, offset: int
) -> tuple[int, ...]:
    """The layers of a kind: one in each period, at the offset."""
    period = values.size(f"{kind}_layer_period", period)
    offset = values.size(f"{kind}_layer_offset", offset, minimum=0)
    if offset >= period:
        raise values.error(
            f"{kind}_layer_offset={offset} must be less than {kind}_layer_period ({period})"
        )
    return tuple(range(offset, n_layers, period))


def _attention(values: ConfigValues, d_model: int, n_layers: int) -> AttentionConfig | None:
    """Without positions and without biases. None where no layer attends."""
    layers = _periodic(values, "attn", n_layers, period=8, offset=4)
    if len(layers) == n_layers:
        raise values.error("every layer attends; a hybrid needs at least one Mamba layer")
    if not layers:
        return None
    n_heads = values.size("num_attention_heads", 32)
    kv_heads = n_heads if "num_key_value_heads" in values else KV_HEADS
    head_dim = head_dim_of(values, d_model, n_heads)
    return AttentionConfig(
        layers=layers,
        n_heads=n_heads,
        n_kv_heads=values.divisor("num_key_value_heads", kv_heads, "num_attention_heads", n_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
    )


def _experts(values: ConfigValues, n_layers: int, d_ff: int) -> ExpertsConfig | None:
    """As wide as the MLPs, without one beside them. One expert is an MLP: there is no router."""
    layers = _periodic(values, "expert", n_layers, period=2, offset=1)
    n_experts = values.size("num_experts", 16)
    if n_experts == 1 or not layers:
        return None
    return ExpertsConfig(
        layers=layers,
        n_experts=n_experts,
        d_ff=d_ff,
        # The shares are a softmax over all experts, of which only some are taken.
        router=RouterConfig(n_chosen=chosen_experts(values, n_experts), normalised=False),
        activation="silu",
    )
