"""Write a model whose residual stream has outlying channels, and whose function is the same.

    .venv/bin/python tools/principal_axes.py models/mamba /tmp/mamba-axes --text data/heldout.txt

The residual stream is rotated onto its principal axes: channel 0 is the direction in which it is
largest, and so on, so that a few channels hold most of it, as in large published models. The
rotation is orthogonal and folded into the weights (`sidewinder.rotation`), in float32. A codec
whose elements share a scale then loses more; `--rotate` should give that back.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sidewinder.checkpoint.files import open_weights
from sidewinder.checkpoint.names import checkpoint_sources
from sidewinder.checkpoint.reader import load_shard
from sidewinder.collectives.base import SingleRank
from sidewinder.config import ModelConfig, load_model_config
from sidewinder.models.registry import build_model
from sidewinder.parallel.group import SINGLE
from sidewinder.rotation import fold_rotation
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.tokenizer import Tokenizer

WINDOW = 1024


class ResidualMoments(SingleRank):
    """Adds up the second moments of the residual stream from the deltas of the mixers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.moments = torch.zeros(config.d_model, config.d_model, dtype=torch.float64)
        self._residual = torch.empty(0)

    def begin(self, embedded: Tensor) -> None:
        """A sequence starts as `embedded` `[T, d_model]`."""
        self._residual = embedded.double()
        self._add()

    def all_reduce_delta(self, x: Tensor, site: str, n_decodes: int) -> Tensor:
        assert n_decodes == 0, "only prefill is looked at"
        if site.endswith("mixer.out_proj"):
            self._residual = self._residual + x.double()
            self._add()
        return x

    def _add(self) -> None:
        # Every token counts alike: what is read is normalised.
        unit = self._residual / self._residual.square().mean(-1, keepdim=True).sqrt()
        self.moments += unit.T @ unit


def stream_moments(folder: Path, config: ModelConfig, token_ids: Sequence[int]) -> Tensor:
    """The stream's second moments, float64 `[d_model, d_model]`; every token counts alike."""
    sums = ResidualMoments(config)
    weights = load_shard(folder, config, SINGLE, torch.float32)
    model = build_model(config, SINGLE, weights, sums)
    n_pages = WINDOW if config.attention is not None else 0
    pool = StatePool(
        config, LocalDims.of(config, SINGLE), 1, torch.float32, n_pages=n_pages, page_size=1
    )
    for start in range(0, len(token_ids) - 1, WINDOW):
        tokens = list(token_ids[start : start + WINDOW])
        sums.begin(weights["embedding.weight"][tokens])
        tables = [list(range(len(tokens)))] if n_pages else None
        model.forward(pack([tokens], [0], page_tables=tables), pool)
    return sums.moments


def principal_axes(moments: Tensor) -> Tensor:
    """The principal axes as columns, the one with the largest moment first."""
    return torch.linalg.eigh(moments).eigenvectors.flip(1)


def rotated_checkpoint(folder: Path, config: ModelConfig, axes: Tensor) -> dict[str, Tensor]:
    """The checkpoint's tensors, by its own names, with the stream along `axes`; float32."""
    stored = {
        key: tensor.view[(slice(None),) * len(tensor.shape)].float()
        for key, tensor in open_weights(folder).items()
    }
    # The rotation acts along d_model, in which no layout of a checkpoint differs from ours.
    keys = {
        name: next(key for key in source.keys if key in stored)
        for name, source in checkpoint_sources(config).items()
    }
    ours = {name: stored[key] for name, key in keys.items()}
    folded = fold_rotation(ours, config, lambda x: (x.double() @ axes).float())
    keys.setdefault("lm_head.weight", "lm_head.weight")
    return {keys[name]: tensor.clone() for name, tensor in folded.items()}


def write(folder: Path, target: Path, tensors: dict[str, Tensor]) -> None:
    """The new checkpoint: the old one's other files, its configuration untied."""
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.json"):
        shutil.copy(file, target / file.name)
    values = json.loads((folder / "config.json").read_text())
    tie = "tie_word_embeddings" if "tie_word_embeddings" in values else "tie_embeddings"
    values |= {tie: False, "dtype": "float32"}
    (target / "config.json").write_text(json.dumps(values, indent=2))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Measure the axes, fold, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("target", type=Path, help="folder of the result")
    parser.add_argument("--text", required=True, help="that the axes are measured on")
    parser.add_argument("--tokens", type=int, default=4096)
    args = parser.parse_args()
    config = load_model_config(args.model)
    token_ids = Tokenizer(str(args.model)).encode(Path(args.text).read_text())[: args.tokens]
    axes = principal_axes(stream_moments(args.model, config, token_ids))
    write(args.model, args.target, rotated_checkpoint(args.model, config, axes))


if __name__ == "__main__":
    main()
