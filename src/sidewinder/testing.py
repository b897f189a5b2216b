"""Shared by tests: tiny random checkpoints of every family, and comparisons.

The checkpoints are transformers' own models with random weights, so that the same folder serves the
oracle and Sidewinder.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TINY: dict[str, dict[str, Any]] = {
    "mamba": dict(
        model_type="mamba", vocab_size=101, hidden_size=24, state_size=5, num_hidden_layers=3,
        conv_kernel=4, expand=2, time_step_rank=3, use_bias=False, use_conv_bias=True,
        tie_word_embeddings=True,
    ),
    "falcon_mamba": dict(
        model_type="falcon_mamba", vocab_size=97, hidden_size=20, state_size=4, num_hidden_layers=3,
        conv_kernel=3, expand=2, time_step_rank=5, use_bias=True, tie_word_embeddings=False,
    ),
    "mamba2": dict(
        model_type="mamba2", vocab_size=103, hidden_size=24, expand=2, num_heads=8, head_dim=6,
        state_size=7, n_groups=2, num_hidden_layers=3, conv_kernel=4, chunk_size=8,
        tie_word_embeddings=False,
    ),
    "zamba": dict(
        model_type="zamba", vocab_size=99, hidden_size=24, num_hidden_layers=6,
        intermediate_size=44, num_attention_heads=4, num_key_value_heads=4, n_mamba_heads=2,
        mamba_d_state=5, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=3, attn_layer_period=3,
        attn_layer_offset=2, tie_word_embeddings=True,
    ),
}  # fmt: skip
"""Default tiny configuration of each family, as keyword arguments of transformers' config."""


def tiny_oracle(family: str, seed: int = 0, **overrides: Any) -> Any:
    """transformers' model of `family` with random weights in float32, in eval mode.

    Every parameter is randomised (transformers starts several at constants, which would hide errors),
    at scales that keep activations of order one and the recurrence both remembering and forgetting.

    Args:
        family: a key of `TINY`.
        seed: of the random weights.
        overrides: configuration values that replace those of `TINY`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    values = TINY[family] | overrides
    config = AutoConfig.for_model(**values)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random_like(name, parameter, generator))
    return model


def _random_like(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("A_log"):
        return noise * 0.5 + 0.5
    if "norm" in name and name.endswith("weight") or name.endswith(".D"):
        return 1.0 + 0.2 * noise
    if "dt_proj" in name and name.endswith("bias") or name.endswith(("dt_bias", "dt_proj_bias")):
        return noise - 2.0
    if name.endswith("bias"):
        return 0.2 * noise
    if "embed" in name:
        return noise
    fan_in = parameter.shape[-1]
    return noise * (0.5 if "conv1d" in name else fan_in**-0.5)


def save_tiny(family: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write `tiny_oracle(...)` as a transformers checkpoint into `folder` and return it."""
    tiny_oracle(family, seed, **overrides).save_pretrained(folder)
    return folder


def relative_error(result: Tensor, reference: Tensor) -> float:
    """max|difference| / max|reference|, in float64; NaN if either holds a NaN."""
    difference = (result.double() - reference.double()).abs().max()
    return float(difference / reference.double().abs().max())


def assert_close(name: str, reference: Tensor, result: Tensor, tolerance: float) -> None:
    """Fail, naming `name` and the figure, unless `relative_error` is at most `tolerance`."""
    assert result.shape == reference.shape, f"{name}: shape {result.shape} is not {reference.shape}"
    error = relative_error(result, reference)
    assert error <= tolerance, f"{name}: relative error {error:.3g} is above {tolerance:.3g}"
