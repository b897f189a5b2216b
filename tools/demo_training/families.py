"""Configurations and initialisation of the demo models."""

import math
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    ZambaConfig,
)

from .corpus import BOS, EOS, PAD

FAMILIES = ("mamba", "falcon-mamba", "mamba2", "zamba")


def config(family: str, vocab_size: int, d_model: int, layers: int) -> PreTrainedConfig:
    """A transformers configuration whose channels and heads divide by 4 ranks."""
    if d_model % 32 or d_model <= 0:
        raise ValueError(f"d_model {d_model}: must be a positive multiple of 32")
    fewest = 4 if family == "zamba" else 1  # every second Zamba layer is hybrid, and two must be
    if layers < fewest:
        raise ValueError(f"{layers} layers: {family} needs at least {fewest}")
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": d_model,
        "num_hidden_layers": layers,
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "initializer_range": 0.02,
    }
    if family == "mamba":
        return MambaConfig(**common)
    if family == "falcon-mamba":
        return FalconMambaConfig(**common)
    if family == "mamba2":
        heads = 2 * d_model // 32
        common |= {"num_heads": heads, "head_dim": 32, "state_size": 32, "n_groups": 1}
        return Mamba2Config(**common, chunk_size=64)
    if family == "zamba":
        kinds = ["hybrid" if i % 2 else "linear_attention" for i in range(layers)]
        common |= {"num_attention_heads": 4, "num_key_value_heads": 4, "n_mamba_heads": 2}
        return ZambaConfig(**common, intermediate_size=2 * d_model, layers_block_type=kinds)
    raise ValueError(f"family {family!r}: choose one of {', '.join(FAMILIES)}")


def create(settings: PreTrainedConfig, seed: int = 0) -> Any:
    """A float32 transformers model, initialised as the Mamba papers do."""
    torch.manual_seed(seed)
    build: Any = AutoModelForCausalLM  # transformers leaves it untyped
    model = build.from_config(settings, dtype=torch.float32)
    layers = settings.num_hidden_layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _initialise(name, parameter, layers)
    return model


def _initialise(name: str, parameter: nn.Parameter, layers: int) -> None:
    """Re-initialise what transformers leaves untypical for small models trained from scratch."""
    if name.endswith(("embeddings.weight", "embed_tokens.weight")):
        nn.init.normal_(parameter, std=0.02)
    elif name.endswith(("out_proj.weight", "down_proj.weight", "o_proj.weight")):
        nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[-1] * 2 * layers))
    elif name.endswith("conv1d.weight"):
        bound = parameter.shape[-1] ** -0.5
        nn.init.uniform_(parameter, -bound, bound)
    elif name.endswith("conv1d.bias"):
        nn.init.zeros_(parameter)
    elif name.endswith(("dt_proj.weight", "dt_proj_weight")):
        bound = parameter.shape[-1] ** -0.5
        nn.init.uniform_(parameter, -bound, bound)
    elif name.endswith((".dt_bias", "dt_proj.bias", "dt_proj_bias")):
        dt = torch.exp(torch.empty_like(parameter).uniform_(math.log(1e-3), math.log(1e-1)))
        parameter.copy_(dt + torch.log(-torch.expm1(-dt)))
    elif name.endswith("A_log"):
        if parameter.dim() == 1:  # Mamba-2: one decay per head, A in [1, 16]
            parameter.copy_(torch.empty_like(parameter).uniform_(1, 16).log())
        else:
            n = parameter.shape[-1]
            parameter.copy_(torch.arange(1, n + 1).log().expand_as(parameter))
    elif name.endswith(".D"):
        nn.init.ones_(parameter)
    elif parameter.dim() >= 2:
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
