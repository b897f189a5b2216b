"""From `config.json` to a `ModelConfig`, for Falcon-H1: every layer has a Mamba-2 mixer and
attention side by side, then an MLP; and what its weights are multiplied by.

Read by nothing in transformers, and so not here: `layers_block_type` (all layers are alike), what
older files have for kernels or other layers (`mamba_chunk_size`, `mamba_use_mlp`,
`attn_layer_indices`), and what only initial weights, training or generation need.
"""

import sys
from itertools import accumulate

from sidewinder.activations import SILU_IN_CHECKPOINTS
from sidewinder.checkpoint.config_values import UNLIMITED, ConfigValues
from sidewinder.checkpoint.mamba2_hybrids import head_dim_of, mamba2_heads, whole_rotary
from sidewinder.config import ModelConfig
from sidewinder.model_config import AttentionConfig, MLPConfig, WeightMultipliers

KV_HEADS, D_SSM = 8, 1024
"""Where a file does not say; `null` is one key-value head for each query head, though, and
`mamba_expand` times `hidden_size`."""


def falcon_h1(values: ConfigValues) -> ModelConfig:
    """Falcon-H1."""
    # One name for the activations of the convolution and of the MLP; the kernels have this one.
    values.choice("hidden_act", "silu", SILU_IN_CHECKPOINTS)
    if (window := values.get("sliding_window")) is not None:
        raise values.error(
            f"sliding_window={window!r} is not supported; only models are that attend to all "
            "tokens (leave it out, or null)"
        )
    d_model, n_layers = values.size("hidden_size", 4096), values.size("num_hidden_layers", 32)
    d_inner = _d_inner(values, d_model)
    n_heads = mamba2_heads(values, d_inner)
    return ModelConfig(
        family="falcon_h1",
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
        use_bias=_use_bias(values),
        use_conv_bias=values.flag("mamba_conv_bias", True),
        gated_norm=values.flag("mamba_rms_norm", False),
        norm_before_gate=values.flag("mamba_norm_before_gate", True),
        time_step_limit=values.limits("time_step_limit", UNLIMITED),
        residual_in_fp32=False,
        tie_embeddings=values.flag("tie_word_embeddings", False),
        dtype=values.dtype(),
        eos_token_ids=values.tokens("eos_token_id", 2),
        attention=_attention(values, d_model, n_layers),
        mlp=MLPConfig(
            values.size("intermediate_size", 14336), "silu", values.flag("mlp_bias", False)
        ),
        embedding_multiplier=values.positive("embedding_multiplier", 1.0),
        logits_divisor=1 / values.positive("lm_head_multiplier", 1.0),
        weight_multipliers=_weight_multipliers(values),
    )


def _d_inner(values: ConfigValues, d_model: int) -> int:
    if "mamba_d_ssm" in values and values.get("mamba_d_ssm") is None:
        return values.scaled("mamba_expand", 2, d_model)
    return values.size("mamba_d_ssm", D_SSM)


def _use_bias(values: ConfigValues) -> bool:
    """Of `in_proj` and of `out_proj`, which have a key each."""
    use_bias = values.flag("mamba_proj_bias", False)
    if values.flag("projectors_bias", False) != use_bias:
        raise values.error(
            f"mamba_proj_bias is {use_bias} and projectors_bias is not; only mixers are supported "
            "whose in_proj and out_proj both have a bias, or neither"
        )
    return use_bias


def _attention(values: ConfigValues, d_model: int, n_layers: int) -> AttentionConfig:
    """Of every layer, with rotary positions. The keys' multiplier is one of the scores, too."""
    n_heads = values.size("num_attention_heads", 32)
    default = n_heads if "num_key_value_heads" in values else KV_HEADS
    head_dim = head_dim_of(values, d_model, n_heads)
    return AttentionConfig(
        layers=tuple(range(n_layers)),
        n_heads=n_heads,
        n_kv_heads=values.divisor("num_key_value_heads", default, "num_attention_heads", n_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5 * values.positive("key_multiplier", 1.0),
        parallel=True,
        use_bias=values.flag("attention_bias", False),
        rotary=whole_rotary(values, head_dim, "Falcon-H1"),
    )


def _weight_multipliers(values: ConfigValues) -> WeightMultipliers:
    gate, down = values.multipliers("mlp_multipliers", 2)
    return WeightMultipliers(
        mixer_in=values.positive("ssm_in_multiplier", 1.0),
        mixer_out=values.positive("ssm_out_multiplier", 1.0),
        mixer_bands=values.multipliers("ssm_multipliers", 5),
        attention_in=values.positive("attention_in_multiplier", 1.0),
        attention_out=values.positive("attention_out_multiplier", 1.0),
        mlp_gate=gate,
        mlp_down=down,
    )


def multipliers_of(config: ModelConfig, name: str) -> tuple[tuple[int, float], ...]:
    """What a parameter is to be multiplied by: `(end, multiplier)` of its bands, one after another;
    none if it is stored as it is."""
    part, by = name.split(".", 2)[-1], config.weight_multipliers
    if part in ("mixer.in_proj.weight", "mixer.in_proj.bias"):
        groups = config.n_groups * config.d_state
        widths = (config.d_inner, config.d_inner, groups, groups, config.n_heads)
        entering = by.mixer_in if part.endswith("weight") else 1.0
        bands = (entering * multiplier for multiplier in by.mixer_bands)
        return tuple(zip(accumulate(widths), bands, strict=True))
    if part in ("attention.q.weight", "attention.k.weight", "attention.v.weight"):
        return ((sys.maxsize, by.attention_in),)
    made_by = {
        "mixer.out_proj": by.mixer_out,
        "attention.o": by.attention_out,
        "mlp.gate": by.mlp_gate,
        "mlp.down": by.mlp_down,
    }
    module = part.rpartition(".")[0]
    return ((sys.maxsize, made_by[module]),) if module in made_by else ()
