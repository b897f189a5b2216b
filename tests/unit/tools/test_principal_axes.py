"""The tool that makes outlying channels: the same function, along its principal axes."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from sidewinder.checkpoint.reader import load_shard
from sidewinder.collectives.base import SingleRank
from sidewinder.config import load_model_config
from sidewinder.models.registry import build_model
from sidewinder.parallel.group import SINGLE
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import assert_close, save_tiny, save_tokenizer
from sidewinder.tokenizer import Tokenizer

TOOL = Path(__file__).parents[3] / "tools" / "principal_axes.py"


def logits(folder, config):
    model = build_model(
        config, SINGLE, load_shard(folder, config, SINGLE, torch.float32), SingleRank()
    )
    pool = StatePool(config, LocalDims.of(config, SINGLE), 1, torch.float32, n_pages=4)
    pages = [[0, 1, 2, 3]] if config.attention else None
    batch = pack([list(range(50))], [0], page_tables=pages)
    return model.logits(model.forward(batch, pool))


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "mamba2", "zamba"])
def test_the_function_stays_and_channels_become_principal_axes(family, tmp_path, monkeypatch):
    folder = save_tiny(family, tmp_path / "model", vocab_size=300, tie_word_embeddings=True)
    save_tokenizer(folder)
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x + 1\n" * 8)
    target = tmp_path / "axes"
    monkeypatch.setattr(sys, "argv", ["x", str(folder), str(target), "--text", str(text)])
    tool = runpy.run_path(str(TOOL), run_name="__main__")
    before, after = load_model_config(folder), load_model_config(target)
    assert_close(family, logits(folder, before), logits(target, after), 1e-4)
    assert not after.tie_embeddings
    token_ids = Tokenizer(str(folder)).encode(text.read_text())
    moments = tool["stream_moments"](target, after, token_ids)
    sizes = moments.diagonal()
    assert (sizes[:-1] >= 0.999 * sizes[1:]).all(), "the largest comes first"
    assert_close("moments", sizes.diag(), moments, 1e-3)
    plain = tool["stream_moments"](folder, before, token_ids)
    assert_close("trace", plain.trace(), sizes.sum(), 1e-3)
