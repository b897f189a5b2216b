"""Where our parameters are in a GGUF file: llama.cpp's names and shapes."""

from sidewinder.checkpoint.common_names import plain
from sidewinder.checkpoint.layouts import HeadRows, Layout, Plain, Transposed
from sidewinder.config import ModelConfig

_TOP = {
    "embedding.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "final_norm.weight": "output_norm.weight",
}

_MIXER = {
    "in_proj": "ssm_in",
    "conv": "ssm_conv1d",
    "x_proj": "ssm_x",
    "dt_proj": "ssm_dt",
    "norm": "ssm_norm",
    "out_proj": "ssm_out",
}

_WITHOUT_KIND = {"A_log": "ssm_a", "D": "ssm_d", "dt_bias": "ssm_dt.bias"}


def gguf_source(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    """Mamba, Falcon-Mamba, Mamba-2; `ssm_a` is read as A_log (`gguf_files.open_gguf`)."""
    if name in _TOP:
        return (_TOP[name],), Plain()
    _, layer, part = name.split(".", 2)
    block = f"blk.{layer}"
    if part == "norm.weight":
        return (f"{block}.attn_norm.weight",), Plain()
    part = part.removeprefix("mixer.")
    if part in _WITHOUT_KIND:
        return (f"{block}.{_WITHOUT_KIND[part]}",), _layout(config, part)
    module, kind = part.split(".")
    return (f"{block}.{_MIXER[module]}.{kind}",), _layout(config, part)


def _layout(config: ModelConfig, part: str) -> Layout:
    if part == "conv.weight":
        return Transposed()
    if part == "A_log" and not config.is_mamba2:
        return Transposed()
    if config.is_mamba2 and part in ("A_log", "D"):
        return HeadRows(config.n_heads, 1)
    if part == "norm.weight":
        return HeadRows(config.n_groups, config.d_inner // config.n_groups)
    return plain(part)
