"""Where our parameters are in a GGUF file: llama.cpp's names and shapes."""

from sidewinder.checkpoint.common_names import plain
from sidewinder.checkpoint.layouts import HeadRows, Layout, OneOf, Plain, Transposed
from sidewinder.config import ModelConfig

_TOP = {
    "embedding.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "final_norm.weight": "output_norm.weight",
}

_MIXER = {
    "dt_norm": "ssm_dt_norm",
    "B_norm": "ssm_b_norm",
    "C_norm": "ssm_c_norm",
    "in_proj": "ssm_in",
    "conv": "ssm_conv1d",
    "x_proj": "ssm_x",
    "dt_proj": "ssm_dt",
    "norm": "ssm_norm",
    "out_proj": "ssm_out",
}

_BESIDE_MIXERS = {
    "norm": "attn_norm",
    "pre_ff_norm": "ffn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "experts.router": "ffn_gate_inp",
    "experts.to_latent": "ffn_latent_down",
    "experts.from_latent": "ffn_latent_up",
}

_WITHOUT_KIND = {"A_log": "ssm_a", "D": "ssm_d", "dt_bias": "ssm_dt.bias"}


def gguf_source(config: ModelConfig, name: str) -> tuple[tuple[str, ...], Layout]:
    """Of all families that GGUF files have; `ssm_a` is read as A_log (`gguf_files.open_gguf`)."""
    if name in _TOP:
        return (_TOP[name],), Plain()
    _, layer, part = name.split(".", 2)
    block = f"blk.{layer}"
    if part == "experts.router.bias":
        return (f"{block}.exp_probs_b.bias",), Plain()
    if part == "pre_ff_norm.weight" and config.family == "falcon_h1":
        return (f"{block}.ffn_norm",), Plain()  # the only norm that llama.cpp reads so
    module, _, kind = part.rpartition(".")
    if module in _BESIDE_MIXERS:
        return (f"{block}.{_BESIDE_MIXERS[module]}.{kind}",), plain(part)
    if config.experts is not None and module.startswith("experts."):
        _, number, matrix = module.split(".")
        if number == "shared":
            return (f"{block}.ffn_{matrix}_shexp.{kind}",), plain(part)
        dim = 1 if matrix == "down" else 0
        layout = OneOf(int(number), config.experts.n_experts, dim=dim)
        return (f"{block}.ffn_{matrix}_exps.{kind}",), layout
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
