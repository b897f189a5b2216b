"""Where each of our parameters is in a checkpoint: the stored key and layout, for every family."""

from dataclasses import dataclass

from sidewinder.checkpoint.common_names import BLOCK, mamba2_mixer, plain, top_keys
from sidewinder.checkpoint.falcon_h1 import multipliers_of
from sidewinder.checkpoint.gguf_names import gguf_source
from sidewinder.checkpoint.layouts import (
    Convolution,
    Layout,
    Multiplied,
    OneOf,
    Plain,
    RowsOf,
    Shape,
    Transposed,
)
from sidewinder.checkpoint.zamba_names import zamba2_source, zamba_source
from sidewinder.config import ModelConfig
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
    if config.layout == "gguf":
        find = gguf_source
    sources = {}
    for name, shape in parameter_shapes(config).items():
        keys, layout = find(config, name)
        sources[name] = Source(keys, layout.stored_shape(shape), layout)
    return sources


def _backbone_source(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    """Mamba, Falcon-Mamba, Mamba-2; transformers says `embeddings`, the authors `embedding`."""
    embedding = ("backbone.embeddings.weight", "backbone.embedding.weight")
    keys = top_keys(config, embedding) | {"final_norm.weight": ("backbone.norm_f.weight",)}
    if name in keys:
        return keys[name], Plain()
    _, layer, part = name.split(".", 2)
    if part == "norm.weight":
        return (f"backbone.layers.{layer}.norm.weight",), Plain()
    part = part.removeprefix("mixer.")
    stored = part.replace("conv.", "conv1d.") if part.startswith("conv.") else part
    layout: Layout = plain(part)
    if part == "conv.weight":
        layout = Convolution()
    elif part == "A_log" and not config.is_mamba2:
        layout = Transposed()
    return (f"backbone.layers.{layer}.mixer.{stored}",), layout


_BAMBA = BLOCK | {"norm": "input_layernorm", "final_norm": "final_layernorm"}

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
            return (shared,), plain(part)
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
    keys = top_keys(config, ("model.embed_tokens.weight",))
    keys["final_norm.weight"] = (f"model.{modules['final_norm']}.weight",)
    if name in keys:
        return keys[name], Plain()
    _, layer, part = name.split(".", 2)
    prefix = f"model.layers.{layer}"
    if part.startswith("mixer."):
        mixer = mamba2_mixer if config.is_mamba2 else _jamba_mixer
        stored, layout = mixer(part.removeprefix("mixer."))
        return (f"{prefix}.mamba.{stored}",), layout
    module, kind = part.rsplit(".", 1)
    return (f"{prefix}.{modules[module]}.{kind}",), plain(part)


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
    keys = top_keys(config, _nemotron_keys("embeddings.weight"))
    keys["final_norm.weight"] = _nemotron_keys("norm_f.weight")
    if name in keys:
        return keys[name], Plain()
    _, layer, part = name.split(".", 2)
    prefix = f"layers.{layer}"
    if part == "norm.weight":
        return _nemotron_keys(f"{prefix}.norm.weight"), Plain()
    if part.startswith("mixer."):
        stored, layout = mamba2_mixer(part.removeprefix("mixer."))
        return _nemotron_keys(f"{prefix}.mixer.{stored}"), layout
    if part.startswith("experts."):
        stored = _nemotron_experts(part.removeprefix("experts."))
        return _nemotron_keys(f"{prefix}.mixer.{stored}"), plain(part)
    module, kind = part.rsplit(".", 1)
    return _nemotron_keys(f"{prefix}.mixer.{_NEMOTRON_PARTS[module]}.{kind}"), plain(part)


_NEMOTRON_LATENT = {"to_latent": "fc1_latent_proj", "from_latent": "fc2_latent_proj"}


def _nemotron_experts(part: str) -> str:
    if part == "router.weight":
        return "gate.weight"
    if part == "router.bias":
        return "gate.e_score_correction_bias"
    module, kind = part.rsplit(".", 1)
    if module in _NEMOTRON_LATENT:
        return f"{_NEMOTRON_LATENT[module]}.{kind}"
    number, matrix = module.split(".")
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
    return (f"{prefix}.experts.{number}.{matrix}_proj.{kind}",), plain(part)


_JAMBA_NORMS = {
    f"{name}_norm.weight": f"{name.lower()}_layernorm.weight" for name in ("dt", "B", "C")
}


def _jamba_mixer(part: str) -> tuple[str, Layout]:
    if part == "A_log":
        return part, Transposed()
    stored, layout = mamba2_mixer(part)
    return _JAMBA_NORMS.get(part, stored), layout


_FINDERS = {
    "zamba": zamba_source,
    "zamba2": zamba2_source,
    "bamba": _bamba_source,
    "granitemoehybrid": _granite_source,
    "nemotron_h": _nemotron_source,
    "falcon_h1": _falcon_h1_source,
    "jamba": _jamba_source,
}
"""By family; the others are named alike."""
