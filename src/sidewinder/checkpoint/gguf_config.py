"""From the metadata of a GGUF file to a `ModelConfig`, for the architectures below."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from sidewinder.checkpoint.config_values import MOST_LAYERS, UNLIMITED, ConfigValues
from sidewinder.checkpoint.gguf_falcon_h1 import falcon_h1
from sidewinder.checkpoint.gguf_files import gguf_parts, largest_type
from sidewinder.checkpoint.gguf_header import TensorInfo, read_header
from sidewinder.checkpoint.gguf_hybrids import Parts, jamba_or_granite, scale_of
from sidewinder.checkpoint.gguf_nemotron import nemotron
from sidewinder.checkpoint.mamba2_hybrids import residual_multiplier
from sidewinder.config import ModelConfig
from sidewinder.model_config import Family


@dataclass(frozen=True)
class _Architecture:
    """One value of `general.architecture`.

    Attributes:
        family: ours.
        mamba2: whether its mixers are Mamba-2's.
        parts: what it has beside them, by metadata, architecture, names of tensors and number of
            layers; None: nothing.
    """

    family: Family
    mamba2: bool
    parts: Callable[[ConfigValues, str, Collection[str], int], Parts] | None = None


_KNOWN = {
    "mamba": _Architecture("mamba", mamba2=False),
    "mamba2": _Architecture("mamba2", mamba2=True),
    "jamba": _Architecture("jamba", mamba2=False, parts=jamba_or_granite),
    "granitehybrid": _Architecture("granitemoehybrid", mamba2=True, parts=jamba_or_granite),
    "nemotron_h": _Architecture("nemotron_h", mamba2=True, parts=nemotron),
    "nemotron_h_moe": _Architecture("nemotron_h", mamba2=True, parts=nemotron),
    "falcon-h1": _Architecture("falcon_h1", mamba2=True, parts=falcon_h1),
}
ARCHITECTURES = tuple(_KNOWN)

FALCON_MIXER_EPS = 1e-6
"""Of the norms on dt, B and C: transformers' default. No key holds it; llama.cpp: norm_eps."""

_DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16"}
"""By the type of the largest tensor; bfloat16 for all others: none has more than 8 bits to keep."""

_END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""llama.cpp ends a text at each of them."""


def read_gguf_config(file: Path) -> ModelConfig:
    """The model that the (first) GGUF file describes.

    Sizes are of the metadata. What the format has no key for is read off the tensors' names:
    biases, and whether head and embedding are one.

    Raises:
        ValueError: if the file is broken, or describes a model that is not supported.
    """
    values, tensors = _contents(file)
    arch = values.choice("general.architecture", None, ARCHITECTURES)
    known = _KNOWN[arch]
    d_model = values.size(f"{arch}.embedding_length", None)
    vocab_size = _vocab_size(values, arch, tensors, d_model)
    d_inner = values.size(f"{arch}.ssm.inner_size", None)
    # Mamba-2's "rank" is its number of heads: there is no projection of dt.
    rank = f"{arch}.ssm.time_step_rank"
    mamba2, jamba = known.mamba2, arch == "jamba"
    n_heads = values.divisor(rank, None, f"{arch}.ssm.inner_size", d_inner) if mamba2 else 1
    groups, residual_scale = f"{arch}.ssm.group_count", f"{arch}.residual_scale"
    n_layers = values.size(f"{arch}.block_count", None, maximum=MOST_LAYERS)
    norm_eps = _norm_eps(values, arch)
    falcon = arch == "mamba" and values.flag(f"{arch}.ssm.dt_b_c_rms", False)
    parts = known.parts(values, arch, tensors, n_layers) if known.parts else Parts()
    ends = [values.token(f"tokenizer.ggml.{name}", None) for name in _END_TOKENS]
    return ModelConfig(
        family="falcon_mamba" if falcon else known.family,
        layout="gguf",
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        d_inner=d_inner,
        d_state=values.size(f"{arch}.ssm.state_size", None),
        d_conv=values.size(f"{arch}.ssm.conv_kernel", None, minimum=2),
        dt_rank=0 if mamba2 else values.size(rank, None),
        n_heads=n_heads,
        n_groups=values.divisor(groups, None, rank, n_heads) if mamba2 else 1,
        norm_eps=norm_eps,
        mixer_norm_eps=FALCON_MIXER_EPS if falcon else norm_eps if jamba else None,
        use_bias=any(name.endswith(".ssm_in.bias") for name in tensors),
        use_conv_bias=any(name.endswith(".ssm_conv1d.bias") for name in tensors),
        # Only Falcon-H1's mixers may be without.
        gated_norm=mamba2 and (arch != "falcon-h1" or "blk.0.ssm_norm.weight" in tensors),
        norm_before_gate=False,
        time_step_limit=UNLIMITED,
        residual_in_fp32=known.parts is None,
        tie_embeddings="output.weight" not in tensors,
        dtype=_DTYPES.get(largest_type(file, tensors.values()), "bfloat16"),
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        attention=parts.attention,
        mlp=parts.mlp,
        experts=parts.experts,
        mixer_norm_weights=jamba,
        single_parts=known.family == "nemotron_h",
        embedding_multiplier=scale_of(values, f"{arch}.embedding_scale", 1.0),
        residual_multiplier=residual_multiplier(
            values, residual_scale, scale_of(values, residual_scale, 1.0)
        ),
        logits_divisor=scale_of(values, f"{arch}.logit_scale", 1.0),
    )


def _contents(file: Path) -> tuple[ConfigValues, dict[str, TensorInfo]]:
    """The metadata of the first part, and the tensors of all parts by name."""
    header = read_header(file)
    others = [read_header(part) for part in gguf_parts(file)[1:]]
    tensors = {info.name: info for each in (header, *others) for info in each.tensors}
    return ConfigValues(header.metadata, str(file)), tensors


def _norm_eps(values: ConfigValues, arch: str) -> float:
    """Nemotron-H's converter writes one of two keys, or both."""
    name = f"{arch}.attention.layer_norm_rms_epsilon"
    if name not in values and _KNOWN[arch].family == "nemotron_h":
        name = f"{arch}.attention.layer_norm_epsilon"
    return values.positive(name, None)


def _vocab_size(
    values: ConfigValues, arch: str, tensors: dict[str, TensorInfo], d_model: int
) -> int:
    """Rows of the embedding; the key is optional, and must agree."""
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise values.error("it has no token_embd.weight; a vocabulary alone is no model")
    if len(embedding.shape) != 2 or embedding.shape[1] != d_model:
        raise values.error(
            f"token_embd.weight has shape {list(embedding.shape)} instead of [tokens, {d_model}]; "
            "its metadata and tensors do not belong together"
        )
    stated = values.size(f"{arch}.vocab_size", embedding.shape[0])
    if stated != embedding.shape[0]:
        raise values.error(
            f"{arch}.vocab_size={stated}, and token_embd.weight has {embedding.shape[0]} rows; "
            "its metadata and tensors do not belong together"
        )
    return stated
