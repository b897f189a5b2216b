"""Models read from the authors' checkpoint layout, with the options that only it has."""

import pytest
import torch
from parity_harness import (
    Checkpoint,
    assert_parity,
    oracle_logits,
    random_tokens,
    run_sharded,
)
from torch import nn
from torch.nn.functional import silu

from sidewinder.config import load_model_config
from sidewinder.testing import TINY, authors_layout, tiny_oracle

LENGTHS = [41, 1, 12, 30]
MIXED = [1, 7, 20, 1]


class NormFirst(nn.Module):
    """Our own plain statement of the authors' `norm_before_gate=True`, put into the oracle."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon
        self.group_size = norm.group_size

    def forward(self, x, gate):
        rows = []
        for group in x.float().split(self.group_size, dim=-1):
            mean_square = group.pow(2).mean(-1, keepdim=True)
            rows.append(group / (mean_square + self.eps).sqrt())
        return torch.cat(rows, dim=-1) * self.weight * silu(gate.float())


class GateOnly(nn.Module):
    """The mixer without its norm (`rmsnorm=False`)."""

    def __init__(self, _norm):
        super().__init__()

    def forward(self, x, gate):
        return x * silu(gate)


def make(folder, family, overrides, norm_of=None, pad=1, **ssm_options):
    """An authors' checkpoint, and the logits of an oracle with gated norms `norm_of(its own)`."""
    oracle = tiny_oracle(family, **overrides)
    for layer in oracle.backbone.layers if norm_of else ():
        layer.mixer.norm = norm_of(layer.mixer.norm)
    oracle.save_pretrained(folder / "transformers")
    authors = authors_layout(folder / "transformers", folder / "authors", pad, **ssm_options)
    config = load_model_config(authors)
    sequences = random_tokens(oracle.config.vocab_size, LENGTHS)
    return Checkpoint(authors, config, sequences, oracle_logits(oracle, sequences))


def check(checkpoint, tp):
    vocab = checkpoint.logits[0].shape[1]
    for reference, result in zip(
        checkpoint.logits, run_sharded(checkpoint, tp, MIXED), strict=True
    ):
        assert result.shape[1] == checkpoint.config.vocab_size
        assert_parity("logits", reference, result[:, :vocab])


@pytest.mark.parametrize("tp", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_padded_vocabulary(tmp_path, family, tied, tp):
    checkpoint = make(tmp_path, family, {"tie_word_embeddings": tied}, pad=16)
    assert checkpoint.config.layout == "authors"
    assert checkpoint.config.vocab_size == -(-TINY[family]["vocab_size"] // 16) * 16
    check(checkpoint, tp)


@pytest.mark.parametrize("tp", [1, 2, 3, 4])
@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_norm_before_gate(tmp_path, n_groups, tp):
    """One group over the ranks, groups whole on ranks, and groups cut between them."""
    overrides = {"n_groups": n_groups}
    checkpoint = make(tmp_path, "mamba2", overrides, NormFirst, norm_before_gate=True)
    assert checkpoint.config.norm_before_gate
    check(checkpoint, tp)


@pytest.mark.parametrize("tp", [1, 2])
def test_without_the_gated_norm(tmp_path, tp):
    checkpoint = make(tmp_path, "mamba2", {}, GateOnly, rmsnorm=False)
    assert not checkpoint.config.gated_norm
    check(checkpoint, tp)
