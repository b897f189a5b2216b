"""From `config.json` to a `ModelConfig`, for transformers' hybrids of SSM mixers and attention."""

from collections.abc import Callable

from sidewinder.activations import SILU_IN_CHECKPOINTS
from sidewinder.checkpoint.config_values import UNLIMITED, ConfigValues
from sidewinder.checkpoint.falcon_h1 import falcon_h1
from sidewinder.checkpoint.jamba import jamba
from sidewinder.checkpoint.mamba2_hybrids import bamba, granite
from sidewinder.checkpoint.nemotron import nemotron_h
from sidewinder.checkpoint.zamba2 import listed_hybrids, mlp_activation, wide_input, zamba2
from sidewinder.config import ModelConfig
from sidewinder.model_config import AttentionConfig, MLPConfig


def _zamba(values: ConfigValues) -> ModelConfig:
    values.choice("hidden_mamba_act", "silu", SILU_IN_CHECKPOINTS)
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
        eos_token_ids=values.tokens("eos_token_id", 2),
        attention=_zamba_attention(values, d_model, n_layers),
        mlp=_zamba_mlp(values),
    )


def _zamba_attention(values: ConfigValues, d_model: int, n_layers: int) -> AttentionConfig:
    n_heads = values.size("num_attention_heads", 16)
    head_dim = values.size("attention_head_dim", wide_input(values, d_model) // n_heads)
    return AttentionConfig(
        layers=_zamba_layers(values, n_layers),
        n_heads=n_heads,
        n_kv_heads=values.divisor("num_key_value_heads", 16, "num_attention_heads", n_heads),
        head_dim=head_dim,
        scale=(head_dim / 2) ** -0.5,
        shared=True,
    )


def _zamba_mlp(values: ConfigValues) -> MLPConfig:
    return MLPConfig(values.size("intermediate_size", 14848), mlp_activation(values))


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
    return listed_hybrids(values, kinds, n_layers)


HYBRIDS: dict[str, Callable[[ConfigValues], ModelConfig]] = {
    "zamba": _zamba,
    "zamba2": zamba2,
    "bamba": bamba,
    "granitemoehybrid": granite,
    "nemotron_h": nemotron_h,
    "falcon_h1": falcon_h1,
    "jamba": jamba,
}
"""By `model_type`."""
