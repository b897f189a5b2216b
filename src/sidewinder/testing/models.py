"""Tiny random models of every family: transformers' own, which Sidewinder reads, too."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidewinder.testing.configs import TINY


def tiny_oracle(family: str, seed: int = 0, **overrides: Any) -> Any:
    """transformers' model of `family` with random weights in float32, in eval mode.

    Every parameter is randomised (transformers starts several at constants: that hides errors), at
    scales that keep activations of order one and the recurrence both remembering and forgetting.

    Args:
        family: a key of `TINY`.
        seed: of the random weights.
        overrides: configuration values that replace those of `TINY`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    values = TINY[family] | overrides
    config = AutoConfig.for_model(**values)
    factory: Any = AutoModelForCausalLM
    # Its grouped products of experts want sizes in sixteens of bytes.
    model = factory.from_config(config, dtype=torch.float32, experts_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random_like(name, parameter, generator))
        for name, buffer in model.named_buffers():
            if name.endswith("score_correction_bias"):
                buffer.copy_(_random_like(name, buffer, generator))
        if config.tie_word_embeddings:  # transformers has two copies of Nemotron-H's
            model.lm_head.weight.copy_(model.get_input_embeddings().weight)
    # transformers gives Zamba's layers blocks of their own where the embeddings are not tied.
    blocks = ("shared_transf", "shared_transformer")
    shared = [part for name, part in model.named_modules() if name.endswith(blocks)]
    for number, copy in enumerate(shared):
        copy.load_state_dict(shared[number % getattr(config, "num_mem_blocks", 1)].state_dict())
    return model


def _random_like(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("A_log"):
        return noise * 0.5 + 0.5
    if ("norm" in name and name.endswith("weight")) or name.endswith(".D"):
        return 1.0 + 0.2 * noise
    if ("dt_proj" in name and name.endswith("bias")) or name.endswith(("dt_bias", "dt_proj_bias")):
        return noise - 2.0
    if name.endswith("bias"):
        return 0.2 * noise
    if "embed" in name:
        return noise
    fan_in = parameter.shape[-1]
    # Adapters add a fraction to what they adapt.
    scale = 0.25 if "adapter_list" in name and name.endswith(".1.weight") else 1.0
    return noise * (0.5 if "conv1d" in name else scale * fan_in**-0.5)


def save_tiny(family: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write `tiny_oracle(...)` as a transformers checkpoint into `folder` and return it."""
    tiny_oracle(family, seed, **overrides).save_pretrained(folder)
    return folder
