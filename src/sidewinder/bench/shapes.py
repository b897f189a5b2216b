"""Published model shapes as config.json values, so that benchmarks run without a download."""

import json
from pathlib import Path
from typing import Any

from sidewinder.bench.hybrid_shapes import HYBRIDS

_MAMBA = {"model_type": "mamba", "vocab_size": 50280, "state_size": 16, "tie_word_embeddings": True}
_MAMBA2 = {
    "model_type": "mamba2",
    "vocab_size": 50288,
    "state_size": 128,
    "head_dim": 64,
    "n_groups": 1,
    "tie_word_embeddings": True,
}


def _mamba(d_model: int, n_layers: int) -> dict[str, Any]:
    return _MAMBA | {"hidden_size": d_model, "num_hidden_layers": n_layers}


def _mamba2(d_model: int, n_layers: int) -> dict[str, Any]:
    return _MAMBA2 | {
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "num_heads": 2 * d_model // 64,
    }


def _falcon(d_model: int, n_layers: int, vocab_size: int = 65024) -> dict[str, Any]:
    return {
        "model_type": "falcon_mamba",
        "vocab_size": vocab_size,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "state_size": 16,
        "tie_word_embeddings": False,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "mamba-130m": _mamba(768, 24),
    "mamba-370m": _mamba(1024, 48),
    "mamba-790m": _mamba(1536, 48),
    "mamba-1.4b": _mamba(2048, 48),
    "mamba-2.8b": _mamba(2560, 64),
    "mamba2-130m": _mamba2(768, 24),
    "mamba2-780m": _mamba2(1536, 48),
    "mamba2-2.7b": _mamba2(2560, 64),
    "falcon-mamba-790m": _falcon(1536, 48, 50280),
    "falcon-mamba-7b": _falcon(4096, 64),
} | HYBRIDS
"""Name to config.json. The `-790m` shapes of Falcon-Mamba and Zamba are not published: they are
these families at mamba-790m's width, for comparing families at one size."""


def is_shape(model: str) -> bool:
    """Whether MODEL names a published shape; a folder of that name goes first."""
    return model in SHAPES and not Path(model).exists()


def shape_values(name: str, n_layers: int | None = None) -> dict[str, Any]:
    """config.json values of a published shape, or of a folder that holds a config.json.

    Args:
        name: a key of `SHAPES`, or a folder.
        n_layers: keep only so many layers.

    Raises:
        ValueError: for an unknown name; lists the known ones.
    """
    file = Path(name) / "config.json"
    if name in SHAPES:
        values = SHAPES[name]
    elif file.is_file():
        values = json.loads(file.read_text())
    else:
        raise ValueError(f"unknown shape {name!r}; known shapes: {', '.join(SHAPES)}")
    return values if n_layers is None else _cut(values, n_layers)


def _cut(values: dict[str, Any], n_layers: int) -> dict[str, Any]:
    """The first `n_layers` layers of the model, also where they are listed."""
    cut = values | {"num_hidden_layers": n_layers}
    if values.get("attn_layer_indices"):
        cut["attn_layer_indices"] = [i for i in values["attn_layer_indices"] if i < n_layers]
    for name in ("layers_block_type", "layer_types", "hybrid_override_pattern"):
        if values.get(name):
            cut[name] = values[name][:n_layers]
    return cut


def write_shape(
    name: str, folder: Path, dtype: str = "bfloat16", n_layers: int | None = None
) -> Path:
    """Write the config.json of `shape_values(name, n_layers)` into `folder` and return it.

    Raises:
        ValueError: for an unknown name; lists the known ones.
    """
    values = shape_values(name, n_layers)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values | {"dtype": dtype}, indent=2))
    return folder
