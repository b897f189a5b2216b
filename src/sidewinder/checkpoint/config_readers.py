"""From a checkpoint's `config.json` to a `ModelConfig`: transformers' layout and the authors'.

(A GGUF file has its own: `gguf_config.py`.)

Keys that a file leaves out take the defaults of the library that wrote it. Sizes are checked here,
before anything is allocated.
"""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from sidewinder.activations import SILU_IN_CHECKPOINTS
from sidewinder.checkpoint.config_values import MOST_LAYERS, UNLIMITED, ConfigValues
from sidewinder.checkpoint.files import stored_dtype
from sidewinder.checkpoint.gguf_config import read_gguf_config
from sidewinder.checkpoint.gguf_files import find_gguf
from sidewinder.checkpoint.hub import models_in
from sidewinder.checkpoint.hybrid_readers import HYBRIDS
from sidewinder.checkpoint.quantised.config import (
    Quantisation,
    find_quantisation,
    quantisation_in,
)
from sidewinder.config import ModelConfig

SUPPORTED_MODEL_TYPES = ("mamba", "falcon_mamba", "mamba2", *HYBRIDS)

AUTHORS_SHARED_OPTIONS = {"layer", "d_state", "d_conv", "expand", "bias", "conv_bias", "activation"}
AUTHORS_OPTIONS = {
    "Mamba1": AUTHORS_SHARED_OPTIONS | {"dt_rank"},
    "Mamba2": AUTHORS_SHARED_OPTIONS
    | {"headdim", "ngroups", "norm_before_gate", "rmsnorm", "dt_limit", "d_ssm", "D_has_hdim"},
}
AUTHORS_TRAINING_OPTIONS = {
    "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path", "conv_init",
    "A_init_range", "chunk_size", "use_mem_eff_path",
}  # fmt: skip
"""Options of initialisation and of kernels: they do not change what a trained model computes."""


def read_model_config(path: Path) -> ModelConfig:
    """Read `config.json` (`path` is the file or the folder that holds it), or a GGUF file likewise.

    Raises:
        ValueError: if the file is missing, is not JSON, or describes a model that is not supported.
    """
    gguf = find_gguf(path)
    if gguf is not None:
        return read_gguf_config(gguf)
    file = path / "config.json" if path.is_dir() else path
    values = _read_json(file)
    config = parse_model_config(values, str(file))
    if values.get("dtype") is None and values.get("torch_dtype") is None:
        config = replace(config, dtype=stored_dtype(file.parent) or config.dtype)
    _say_what_is_not_read(find_quantisation(file.parent), file.parent)
    return config


def _say_what_is_not_read(quantisation: Quantisation | None, folder: Path) -> None:
    if quantisation is not None and quantisation.rounds_activations:
        warnings.warn(
            f"{folder} is made for activations, keys or values in few bits, too; here they are "
            "not rounded, and their scales are not used",
            stacklevel=3,
        )


def parse_model_config(contents: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """The model that the values of a `config.json` describe; `source` names it in errors.

    Raises:
        ValueError: if it is not supported, or a value does not fit.
    """
    values = ConfigValues(contents, source)
    quantisation_in(contents, source)
    if "model_type" in values:
        return _transformers_config(values)
    if "d_model" in values and "n_layer" in values:
        return _authors_config(values)
    raise values.error(
        "it names neither `model_type` (transformers' layout) nor `d_model` and `n_layer` "
        f"(the authors'); supported architectures: {', '.join(SUPPORTED_MODEL_TYPES)}"
    )


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist; a model folder needs its config.json{models_in(file.parent)}"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # numbers without end, nesting without end too
        raise ValueError(f"{file} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no JSON object; fetch it again")
    return values


def _transformers_config(values: ConfigValues) -> ModelConfig:
    model_type = values.choice("model_type", None, SUPPORTED_MODEL_TYPES)
    # Before any reader lists the layers.
    values.size("num_hidden_layers", 1, maximum=MOST_LAYERS)
    if model_type == "mamba2":
        return _transformers_mamba2(values)
    if model_type in HYBRIDS:
        return HYBRIDS[model_type](values)
    return _transformers_mamba(values, falcon=model_type == "falcon_mamba")


def _transformers_mamba(values: ConfigValues, falcon: bool) -> ModelConfig:
    values.choice("hidden_act", "silu", SILU_IN_CHECKPOINTS)
    d_model = values.size("hidden_size", 768)
    return ModelConfig(
        family="falcon_mamba" if falcon else "mamba",
        layout="transformers",
        vocab_size=values.size("vocab_size", 50280),
        d_model=d_model,
        n_layers=values.size("num_hidden_layers", 32),
        # Where both are given, intermediate_size counts (Falcon-Mamba-7B says expand=16).
        d_inner=values.size("intermediate_size", values.scaled("expand", 2, d_model)),
        d_state=values.size("state_size", 16),
        d_conv=values.size("conv_kernel", 4, minimum=2),
        dt_rank=values.rank("time_step_rank", d_model),
        n_heads=1,
        n_groups=1,
        norm_eps=values.positive("layer_norm_epsilon", 1e-5),
        mixer_norm_eps=values.positive("mixer_rms_eps", 1e-6) if falcon else None,
        use_bias=values.flag("use_bias", False),
        use_conv_bias=values.flag("use_conv_bias", True),
        gated_norm=False,
        norm_before_gate=False,
        time_step_limit=UNLIMITED,
        residual_in_fp32=values.flag("residual_in_fp32", True),
        tie_embeddings=values.flag("tie_word_embeddings", True),
        dtype=values.dtype(),
        eos_token_ids=values.tokens("eos_token_id", 0),
    )


def _transformers_mamba2(values: ConfigValues) -> ModelConfig:
    values.choice("hidden_act", "silu", SILU_IN_CHECKPOINTS)
    d_model = values.size("hidden_size", 4096)
    d_inner = values.scaled("expand", 2, d_model)
    n_heads, head_dim = values.size("num_heads", 128), values.size("head_dim", 64)
    if n_heads * head_dim != d_inner:
        raise values.error(
            f"num_heads ({n_heads}) times head_dim ({head_dim}) must be expand times hidden_size "
            f"({d_inner})"
        )
    return ModelConfig(
        family="mamba2",
        layout="transformers",
        vocab_size=values.size("vocab_size", 32768),
        d_model=d_model,
        n_layers=values.size("num_hidden_layers", 64),
        d_inner=d_inner,
        d_state=values.size("state_size", 128),
        d_conv=values.size("conv_kernel", 4, minimum=2),
        dt_rank=0,
        n_heads=n_heads,
        n_groups=values.divisor("n_groups", 8, "num_heads", n_heads),
        norm_eps=values.positive("layer_norm_epsilon", 1e-5),
        mixer_norm_eps=None,
        use_bias=values.flag("use_bias", False),
        use_conv_bias=values.flag("use_conv_bias", True),
        gated_norm=True,
        norm_before_gate=False,
        time_step_limit=values.limits("time_step_limit", UNLIMITED),
        residual_in_fp32=values.flag("residual_in_fp32", True),
        tie_embeddings=values.flag("tie_word_embeddings", False),
        dtype=values.dtype(),
        eos_token_ids=values.tokens("eos_token_id", 2),
    )


def _authors_config(values: ConfigValues) -> ModelConfig:
    """The layout of the papers' authors: `d_model`, `n_layer`, `ssm_cfg`; Mamba and Mamba-2."""
    ssm = values.section("ssm_cfg")
    layer = ssm.choice("layer", "Mamba1", tuple(AUTHORS_OPTIONS))
    _check_authors_options(values, ssm, layer)
    d_model = values.size("d_model", None)
    d_inner = ssm.scaled("expand", 2, d_model)
    mamba2 = layer == "Mamba2"
    head_dim = ssm.divisor("headdim", 64, "the inner width", d_inner) if mamba2 else d_inner
    n_heads = d_inner // head_dim
    multiple = values.size("pad_vocab_size_multiple", 8)
    vocab_size = values.size("vocab_size", 50277)
    return ModelConfig(
        family="mamba2" if mamba2 else "mamba",
        layout="authors",
        vocab_size=-(-vocab_size // multiple) * multiple,
        d_model=d_model,
        n_layers=values.size("n_layer", None, maximum=MOST_LAYERS),
        d_inner=d_inner,
        d_state=ssm.size("d_state", 128 if mamba2 else 16),
        d_conv=ssm.size("d_conv", 4, minimum=2),
        dt_rank=0 if mamba2 else ssm.rank("dt_rank", d_model),
        n_heads=n_heads,
        n_groups=ssm.divisor("ngroups", 1, "the number of heads", n_heads) if mamba2 else 1,
        norm_eps=values.positive("norm_epsilon", 1e-5),
        mixer_norm_eps=None,
        use_bias=ssm.flag("bias", False),
        use_conv_bias=ssm.flag("conv_bias", True),
        gated_norm=mamba2 and ssm.flag("rmsnorm", True),
        norm_before_gate=mamba2 and ssm.flag("norm_before_gate", False),
        time_step_limit=ssm.limits("dt_limit", UNLIMITED) if mamba2 else UNLIMITED,
        residual_in_fp32=values.flag("residual_in_fp32", True),
        tie_embeddings=values.flag("tie_embeddings", True),
        dtype=values.dtype(),
        eos_token_ids=values.tokens("eos_token_id", None),
    )


def _check_authors_options(values: ConfigValues, ssm: ConfigValues, layer: str) -> None:
    known = AUTHORS_OPTIONS[layer]
    unknown = sorted(set(ssm.names()) - known - AUTHORS_TRAINING_OPTIONS)
    if unknown:
        raise ssm.error(
            f"unknown options {', '.join(unknown)} of {layer}; known: {', '.join(sorted(known))}"
        )
    ssm.choice("activation", "swish", SILU_IN_CHECKPOINTS)
    if not values.flag("rms_norm", True):
        raise values.error("rms_norm=false (LayerNorm) is not supported; only RMSNorm models are")
    if values.get("attn_layer_idx"):
        raise values.error(
            "attn_layer_idx names attention layers; the authors' hybrids are not supported"
        )
    if values.size("d_intermediate", 0, minimum=0):
        raise values.error("d_intermediate > 0 (an MLP in every block) is not supported; only 0 is")
    if layer == "Mamba2":
        if ssm.flag("D_has_hdim", False):
            raise ssm.error("D_has_hdim=true is not supported; D must be one value per head")
        d_inner = ssm.scaled("expand", 2, values.size("d_model", None))
        if ssm.get("d_ssm") not in (None, d_inner):
            raise ssm.error(f"d_ssm={ssm.get('d_ssm')!r} is not supported; only {d_inner} is")
