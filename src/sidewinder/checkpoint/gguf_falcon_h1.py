"""What llama.cpp's `falcon-h1` has beside mixers. Its multipliers are in the weights."""

from collections.abc import Collection

from sidewinder.checkpoint.config_values import ConfigValues
from sidewinder.checkpoint.gguf_hybrids import Parts, scale_of
from sidewinder.checkpoint.gguf_nemotron import head_dim_of
from sidewinder.model_config import AttentionConfig, MLPConfig, RotaryConfig

THETA = 10000.0
"""Where no key says it."""


def falcon_h1(values: ConfigValues, arch: str, tensors: Collection[str], n_layers: int) -> Parts:
    """By the names of all tensors.

    Raises:
        ValueError: if sizes do not fit each other, positions are scaled, or multipliers are beside
            the weights, as in files of llama.cpp's first fork for this family.
    """
    for key in values.names():
        if key.startswith(f"{arch}.") and key.endswith(("_multiplier", "_multipliers", "has_mup")):
            raise values.error(
                f"{key} says that the weights are without their multipliers, as a fork of "
                "llama.cpp wrote them; convert the model with llama.cpp's own converter"
            )
    heads, kv_heads = f"{arch}.attention.head_count", f"{arch}.attention.head_count_kv"
    n_heads = values.size(heads, None)
    head_dim = head_dim_of(values, arch, n_heads)
    attention = AttentionConfig(
        layers=tuple(range(n_layers)),
        n_heads=n_heads,
        n_kv_heads=values.divisor(kv_heads, n_heads, heads, n_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        parallel=True,
        use_bias="blk.0.attn_q.bias" in tensors,
        rotary=_rotary(values, arch, head_dim),
    )
    d_ff = values.size(f"{arch}.feed_forward_length", None)
    return Parts(attention, MLPConfig(d_ff, "silu", "blk.0.ffn_down.bias" in tensors))


def _rotary(values: ConfigValues, arch: str, head_dim: int) -> RotaryConfig:
    """All channels of a head turn, and positions are as they are."""
    scaling, factor = f"{arch}.rope.scaling.type", f"{arch}.rope.scaling.factor"
    kind = values.choice(scaling, "linear", ("none", "linear"))  # llama.cpp's default, by 1
    if kind == "linear" and scale_of(values, factor, 1.0) != 1:
        raise values.error(f"{factor}={values.get(factor)}: scaled positions are not supported")
    width = f"{arch}.rope.dimension_count"
    if values.size(width, head_dim) != head_dim:
        raise values.error(
            f"{width}={values.get(width)} of a head's {head_dim} channels turn, and in Falcon-H1 "
            "all of them do"
        )
    return RotaryConfig(values.positive(f"{arch}.rope.freq_base", THETA), head_dim)
