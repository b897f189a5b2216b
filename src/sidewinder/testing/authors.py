"""The layout in which the authors of Mamba save their models."""

import json
from pathlib import Path
from typing import Any

import torch


def authors_layout(
    source: Path, folder: Path, pad_vocab_size_multiple: int = 1, **ssm_options: Any
) -> Path:
    """Rewrite transformers' Mamba or Mamba-2 checkpoint `source` in the authors' layout.

    The result is what their own library saves: `d_model`, `n_layer`, `ssm_cfg`, and a
    `pytorch_model.bin` that holds a tied head twice.

    Args:
        source: folder with config.json and model.safetensors.
        folder: where the result goes; made if it does not exist.
        pad_vocab_size_multiple: the embedding gets rows of zeros up to a multiple of it.
        ssm_options: more entries of `ssm_cfg` (`norm_before_gate`, ...).
    """
    from safetensors.torch import load_file

    config = json.loads((source / "config.json").read_text())
    weights = load_file(source / "model.safetensors")
    renamed = {key.replace("backbone.embeddings", "backbone.embedding"): value
               for key, value in weights.items()}  # fmt: skip
    embedding = renamed["backbone.embedding.weight"]
    rows = -len(embedding) % pad_vocab_size_multiple
    renamed.setdefault("lm_head.weight", embedding)
    for key in ("backbone.embedding.weight", "lm_head.weight"):
        renamed[key] = torch.cat([renamed[key], torch.zeros(rows, embedding.shape[1])])
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(renamed, folder / "pytorch_model.bin")
    values = {
        "d_model": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "vocab_size": config["vocab_size"],
        "ssm_cfg": _ssm_cfg(config) | ssm_options,
        "rms_norm": True,
        "residual_in_fp32": config["residual_in_fp32"],
        "fused_add_norm": True,
        "pad_vocab_size_multiple": pad_vocab_size_multiple,
        "tie_embeddings": config["tie_word_embeddings"],
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2))
    return folder


def _ssm_cfg(config: dict[str, Any]) -> dict[str, Any]:
    """The authors' names of a transformers configuration's mixer options."""
    shared = {
        "d_state": config["state_size"],
        "d_conv": config["conv_kernel"],
        "expand": config["expand"],
        "bias": config["use_bias"],
        "conv_bias": config["use_conv_bias"],
    }
    if config["model_type"] == "mamba":
        return shared | {"layer": "Mamba1", "dt_rank": config["time_step_rank"]}
    limits = [limit["__float__"] if isinstance(limit, dict) else limit
              for limit in config["time_step_limit"]]  # fmt: skip
    return shared | {
        "layer": "Mamba2",
        "headdim": config["head_dim"],
        "ngroups": config["n_groups"],
        "dt_limit": limits,
    }
