"""Where each of our parameters is in a checkpoint: the stored key and layout, for every family."""

from dataclasses import dataclass

from sidewinder.checkpoint.falcon_h1 import multipliers_of
from sidewinder.checkpoint.layouts import (
    Convolution,
    HeadColumns,
    HeadRows,
    HeadTransposed,
    Interleaved,
    Layout,
    Multiplied,
    OneOf,
    Plain,
    RowsOf,
    Shape,
    Transposed,
)
from sidewinder.config import ModelConfig
from sidewinder.model_config import AttentionConfig
from sidewinder.sharding.plan import parameter_shapes


@dataclass(frozen=True)
class Source:
    """Where a parameter is stored.

    Attributes:
        keys: names under which it may be stored; the first that exists is read; the others must
            hold the same weights again (the reader checks).
        shape: its shape in the checkpoint.
        layout: how to read parts of it.
    """

    keys: tuple[str, ...]
    shape: Shape
    layout: Layout


def checkpoint_sources(config: ModelConfig) -> dict[str, Source]:
    """The source of every parameter of `config`, in the checkpoint layout that it came with."""
    find = _FINDERS.get(config.family, _backbone_source)
    sources = {}
    for name, shape in parameter_shapes(config).items():
        keys, layout = find(config, name)
        sources[name] = Source(keys, layout.stored_shape(shape), layout)
    return sources


_COLUMN_SPLIT = ("x_proj.weight", "out_proj.weight", "attention.o.weight", "down.weight")


def _plain(name: str) -> Plain:
    """Stored as ours; ranges run along the dimension in which the plan splits it."""
    return Plain(1 if name.endswith(_COLUMN_SPLIT) else 0)


def _top_keys(config: ModelConfig, embedding: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    # A tied head may be stored again, or be the only copy.
    head = ("lm_head.weight",)
    return {
        "embedding.weight": embedding + head if config.tie_embeddings else embedding,
        "lm_head.weight": head,
    }


def _backbone_source(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    """Mamba, Falcon-Mamba, Mamba-2; transformers says `embeddings`, the authors `embedding`."""
    embedding = ("backbone.embeddings.weight", "backbone.embedding.weight")
    keys = _top_keys(config, embedding) | {"final_norm.weight": ("backbone.norm_f.weight",)}
    if name in keys:
        return keys[name], Plain()
    _, layer, part = name.split(".", 2)
    if part == "norm.weight":
        return (f"backbone.layers.{layer}.norm.weight",), Plain()
    part = part.removeprefix("mixer.")
    stored = part.replace("conv.", "conv1d.") if part.startswith("conv.") else part
    layout: Layout = _plain(part)
    if part == "conv.weight":
        layout = Convolution()
    elif part == "A_log" and not config.is_mamba2:
        layout = Transposed()
    return (f"backbone.layers.{layer}.mixer.{stored}",), layout


_BLOCK = {
    "input_norm": "input_layernorm",
    "pre_ff_norm": "pre_ff_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp.gate": "feed_forward.gate_proj",
    "mlp.up": "feed_forward.up_proj",
    "mlp.down": "feed_forward.down_proj",
}
"""Attention, MLP and their norms in Zamba's shared block and Bamba's layers."""


def _zamba_source(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    assert config.attention is not None
    keys = _top_keys(config, ("model.embed_tokens.weight",))
    keys["final_norm.weight"] = ("model.final_layernorm.weight",)
    if name in keys:
        return keys[name], Plain()
    if name.startswith("shared."):
        part = name.removeprefix("shared.")
        stored = _BLOCK[part.removesuffix(".weight")]
        # The block is stored with the first hybrid layer, or again with every one.
        return tuple(
            f"model.layers.{layer}.shared_transf.{stored}.weight"
            for layer in config.attention.layers
        ), _plain(part)
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
    return special.get(part, (part, _plain(part)))


_ZAMBA2_BLOCK = _BLOCK | {
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


def _zamba2_source(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    """A block is stored with the first layer that calls it, or again with others."""
    assert config.attention is not None
    keys = _top_keys(config, ("model.embed_tokens.weight",))
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
    stored, layout = _mamba2_mixer(part.removeprefix("mixer."))
    return (f"{prefix}.mamba.{stored}",), layout


def _zamba2_block(
    config: ModelConfig, part: str, layers: tuple[int, ...]
) -> tuple[tuple[str, ...], Layout]:
    assert config.mlp is not None, "a shared block has an MLP"
    module, kind = part.rsplit(".", 1)
    layout: Layout = _plain(part)
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


_BAMBA = _BLOCK | {"norm": "input_layernorm", "final_norm": "final_layernorm"}

_GRANITE = _BAMBA | {
    "final_norm": "norm",
    "pre_ff_norm": "post_attention_layernorm",
    "mlp.gate": "shared_mlp.input_linear",
    "mlp.up": "shared_mlp.input_linear",
    "mlp.down": "shared_mlp.output_linear",
}


def _bamba_source(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    return _hybrid(config, name, _BAMBA)


def _granite_source(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    """As Bamba, by other names; gate and up are bands of one matrix, and all experts one tensor."""
    if ".experts." in name:
        return _granite_experts(config, name)
    keys, layout = _hybrid(config, name, _GRANITE)
    if config.mlp is not None and name.endswith(("mlp.gate.weight", "mlp.up.weight")):
        layout = _gate_or_up(config.mlp.d_ff, name)
    return keys, layout


def _granite_experts(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    assert config.experts is not None
    layer, _, part = name.removeprefix("layers.").partition(".experts.")
    prefix = f"model.layers.{layer}"
    if part == "router.weight":
        return (f"{prefix}.block_sparse_moe.router.layer.weight",), Plain()
    number, matrix, _ = part.split(".")
    stored = "output_linear" if matrix == "down" else "input_linear"
    if number == "shared":
        shared = f"{prefix}.shared_mlp.{stored}.weight"
        if matrix == "down":
            return (shared,), _plain(part)
        return (shared,), _gate_or_up(config.experts.shared_d_ff, part)
    index, total, d_ff = int(number), config.experts.n_experts, config.experts.d_ff
    layout: Layout = OneOf(index, total, dim=1)
    if matrix != "down":
        layout = OneOf(index, total, d_ff if matrix == "up" else 0, 2 * d_ff)
    return (f"{prefix}.block_sparse_moe.{stored}.weight",), layout


def _gate_or_up(d_ff: int, name: str) -> RowsOf:
    return RowsOf(d_ff if name.endswith("up.weight") else 0, 2 * d_ff)


def _hybrid(
    config: ModelConfig, name: str, modules: dict[str, str]
) -> tuple[tuple[str, ...], Layout]:
    """Of layers with a mixer or attention; `modules`: stored names of the rest."""
    keys = _top_keys(config, ("model.embed_tokens.weight",))
    keys["final_norm.weight"] = (f"model.{modules['final_norm']}.weight",)
    if name in keys:
        return keys[name], Plain()
    _, layer, part = name.split(".", 2)
    prefix = f"model.layers.{layer}"
    if part.startswith("mixer."):
        mixer = _mamba2_mixer if config.is_mamba2 else _jamba_mixer
        stored, layout = mixer(part.removeprefix("mixer."))
        return (f"{prefix}.mamba.{stored}",), layout
    module, kind = part.rsplit(".", 1)
    return (f"{prefix}.{modules[module]}.{kind}",), _plain(part)


_NEMOTRON_PARTS = {
    "attention.q": "q_proj",
    "attention.k": "k_proj",
    "attention.v": "v_proj",
    "attention.o": "o_proj",
    "mlp.up": "up_proj",
    "mlp.down": "down_proj",
}


def _nemotron_source(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    """All that a layer may be is its `mixer`; files say `backbone`, transformers itself `model`."""
    keys = _top_keys(config, _nemotron_keys("embeddings.weight"))
    keys["final_norm.weight"] = _nemotron_keys("norm_f.weight")
    if name in keys:
        return keys[name], Plain()
    _, layer, part = name.split(".", 2)
    prefix = f"layers.{layer}"
    if part == "norm.weight":
        return _nemotron_keys(f"{prefix}.norm.weight"), Plain()
    if part.startswith("mixer."):
        stored, layout = _mamba2_mixer(part.removeprefix("mixer."))
        return _nemotron_keys(f"{prefix}.mixer.{stored}"), layout
    if part.startswith("experts."):
        stored = _nemotron_experts(part.removeprefix("experts."))
        return _nemotron_keys(f"{prefix}.mixer.{stored}"), _plain(part)
    module, kind = part.rsplit(".", 1)
    return _nemotron_keys(f"{prefix}.mixer.{_NEMOTRON_PARTS[module]}.{kind}"), _plain(part)


def _nemotron_experts(part: str) -> str:
    if part == "router.weight":
        return "gate.weight"
    if part == "router.bias":
        return "gate.e_score_correction_bias"
    number, matrix, kind = part.split(".")
    mlp = "shared_experts" if number == "shared" else f"experts.{number}"
    return f"{mlp}.{matrix}_proj.{kind}"


def _nemotron_keys(name: str) -> tuple[str, ...]:
    return f"backbone.{name}", f"model.{name}"


def _falcon_h1_source(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    """As Bamba, and every layer has all parts; stored without their multipliers."""
    keys, layout = _hybrid(config, name, _BAMBA)
    multipliers = multipliers_of(config, name)
    return keys, Multiplied(layout, multipliers) if multipliers else layout


def _jamba_source(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    """As Bamba, with Mamba-1 mixers; every expert is stored by itself."""
    layer, found, part = name.partition(".experts.")
    if not found:
        return _hybrid(config, name, _BAMBA)
    prefix = f"model.{layer}.feed_forward"
    if part == "router.weight":
        return (f"{prefix}.router.weight",), Plain()
    number, matrix, kind = part.split(".")
    return (f"{prefix}.experts.{number}.{matrix}_proj.{kind}",), _plain(part)


_JAMBA_NORMS = {
    f"{name}_norm.weight": f"{name.lower()}_layernorm.weight" for name in ("dt", "B", "C")
}


def _jamba_mixer(part: str) -> tuple[str, Layout]:
    if part == "A_log":
        return part, Transposed()
    stored, layout = _mamba2_mixer(part)
    return _JAMBA_NORMS.get(part, stored), layout


def _mamba2_mixer(part: str) -> tuple[str, Layout]:
    if part == "conv.weight":
        return "conv1d.weight", Convolution()
    return part.replace("conv.", "conv1d."), _plain(part)


_FINDERS = {
    "zamba": _zamba_source,
    "zamba2": _zamba2_source,
    "bamba": _bamba_source,
    "granitemoehybrid": _granite_source,
    "nemotron_h": _nemotron_source,
    "falcon_h1": _falcon_h1_source,
    "jamba": _jamba_source,
}
"""By family; the others are named alike."""
