"""Where the parameters of Zamba and Zamba2 are in a checkpoint."""

from sidewinder.checkpoint.common_names import BLOCK, mamba2_mixer, plain, top_keys
from sidewinder.checkpoint.layouts import (
    Convolution,
    HeadColumns,
    HeadRows,
    HeadTransposed,
    Interleaved,
    Layout,
    Plain,
    RowsOf,
)
from sidewinder.config import ModelConfig
from sidewinder.model_config import AttentionConfig


def zamba_source(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    """The block is stored with the first layer that calls it, or again with others."""
    assert config.attention is not None
    keys = top_keys(config, ("model.embed_tokens.weight",))
    keys["final_norm.weight"] = ("model.final_layernorm.weight",)
    if name in keys:
        return keys[name], Plain()
    if name.startswith("shared."):
        part = name.removeprefix("shared.")
        stored = BLOCK[part.removesuffix(".weight")]
        return tuple(
            f"model.layers.{layer}.shared_transf.{stored}.weight"
            for layer in config.attention.layers
        ), plain(part)
    _, layer, part = name.split(".", 2)
    if part == "linear.weight":
        return (f"model.layers.{layer}.linear.weight",), Plain()
    hybrid = int(layer) in config.attention.layers
    prefix = f"model.layers.{layer}" + (".mamba_decoder" if hybrid else "")
    if part == "norm.weight":
        return (f"{prefix}.input_layernorm.weight",), Plain()
    stored, layout = _zamba_mixer(config, part.removeprefix("mixer."))
    return (f"{prefix}.mamba.{stored}",), layout


def _zamba_mixer(config: ModelConfig, part: str) -> tuple[str, Layout]:
    rows = HeadRows(config.n_heads, config.head_dim)
    special: dict[str, tuple[str, Layout]] = {
        "in_proj.weight": ("in_proj.weight", Interleaved(config.d_inner)),
        "in_proj.bias": ("in_proj.bias", Interleaved(config.d_inner)),
        "conv.weight": ("conv1d.weight", Convolution()),
        "conv.bias": ("conv1d.bias", Plain()),
        "x_proj.weight": ("x_proj_weight", HeadColumns(config.n_heads, config.head_dim)),
        "dt_proj.weight": ("dt_proj_weight", rows),
        "dt_proj.bias": ("dt_proj_bias", rows),
        "A_log": ("A_log", HeadTransposed(config.n_heads, config.head_dim)),
        "D": ("D", rows),
    }
    return special.get(part, (part, plain(part)))


_ZAMBA2_BLOCK = BLOCK | {
    "mlp.gate": "feed_forward.gate_up_proj",
    "mlp.up": "feed_forward.gate_up_proj",
}

_ADAPTERS = {
    "q": "self_attn.linear_q_adapter_list",
    "k": "self_attn.linear_k_adapter_list",
    "v": "self_attn.linear_v_adapter_list",
    "gate_up": "feed_forward.gate_up_proj_adapter_list",
}
"""Lists over all calls; a block stores those of its own calls, A as `0` and B as `1`."""


def zamba2_source(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    """A block is stored with the first layer that calls it, or again with others."""
    assert config.attention is not None
    keys = top_keys(config, ("model.embed_tokens.weight",))
    keys["final_norm.weight"] = ("model.final_layernorm.weight",)
    if name in keys:
        return keys[name], Plain()
    for block, layers in config.attention.blocks.items():
        if name.startswith(f"{block}."):
            return _zamba2_block(config, name.removeprefix(f"{block}."), layers)
    _, layer, part = name.split(".", 2)
    if part.startswith("adapter."):
        return _zamba2_adapter(config.attention, int(layer), part.removeprefix("adapter.")), Plain()
    if part == "linear.weight":
        return (f"model.layers.{layer}.linear.weight",), Plain()
    hybrid = int(layer) in config.attention.layers
    prefix = f"model.layers.{layer}" + (".mamba_decoder" if hybrid else "")
    if part == "norm.weight":
        return (f"{prefix}.input_layernorm.weight",), Plain()
    stored, layout = mamba2_mixer(part.removeprefix("mixer."))
    return (f"{prefix}.mamba.{stored}",), layout


def _zamba2_block(
    config: ModelConfig, part: str, layers: tuple[int, ...]
) -> tuple[tuple[str, ...], Layout]:
    assert config.mlp is not None, "a shared block has an MLP"
    module, kind = part.rsplit(".", 1)
    layout: Layout = plain(part)
    if module in ("mlp.gate", "mlp.up"):
        d_ff = config.mlp.d_ff
        layout = RowsOf(d_ff if module == "mlp.up" else 0, 2 * d_ff)
    stored = f"shared_transformer.{_ZAMBA2_BLOCK[module]}.{kind}"
    return tuple(f"model.layers.{layer}.{stored}" for layer in layers), layout


def _zamba2_adapter(attention: AttentionConfig, layer: int, part: str) -> tuple[str, ...]:
    projection, matrix, _ = part.split(".")
    call = attention.layers.index(layer)
    stored = f"shared_transformer.{_ADAPTERS[projection]}.{call}.{'AB'.index(matrix)}.weight"
    callers = next(layers for layers in attention.blocks.values() if layer in layers)
    return tuple(f"model.layers.{caller}.{stored}" for caller in callers)
