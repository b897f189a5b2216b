"""Models read from GGUF files, against transformers with the weights that the files hold."""

import pytest
import torch
from gguf_cases import TYPES, write_gguf
from parity_harness import Checkpoint, assert_parity, oracle_logits, random_tokens, run_sharded
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from sidewinder.config import load_model_config
from sidewinder.testing import TINY, assert_close, tiny_oracle

LENGTHS = [41, 1, 12, 30]
MIXED = [1, 7, 20, 1]
KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0"]

WIDE = {
    "mamba": {"hidden_size": 64, "time_step_rank": 32},
    "falcon_mamba": {"hidden_size": 64, "time_step_rank": 32},
    "mamba2": {"hidden_size": 64, "num_heads": 8, "head_dim": 16},
    "granitemoehybrid": {"hidden_size": 64, "shared_intermediate_size": 96},
    "granite_experts": {"hidden_size": 64, "intermediate_size": 32},
    "jamba": {"hidden_size": 64, "mamba_dt_rank": 32, "intermediate_size": 96},
    "jamba_experts": {"hidden_size": 64, "mamba_dt_rank": 32, "intermediate_size": 96},
    "nemotron_h": {
        "hidden_size": 64, "intermediate_size": 96, "head_dim": 8, "mamba_head_dim": 16,
    },
    "nemotron_experts": {
        "hidden_size": 64, "head_dim": 8, "mamba_head_dim": 16, "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 64, "moe_latent_size": 32,
    },
    "falcon_h1": {
        "hidden_size": 64, "head_dim": 8, "mamba_d_ssm": 128, "intermediate_size": 96,
    },
}  # fmt: skip
"""Rows of every matrix divide into blocks of 32, the inner width over 3 ranks does not."""


NO_LIMIT_ON_DT = {name: {"time_step_min": 1e-30} for name in ("nemotron_h", "nemotron_experts")}
"""transformers clamps dt there; GGUF files have no key for it, and llama.cpp does not."""


def make(folder, family, kind, **overrides):
    """A GGUF file, and the logits of transformers with what a reader of it has for weights."""
    overrides = NO_LIMIT_ON_DT.get(family, {}) | overrides
    oracle = tiny_oracle(family, **overrides)
    file = write_gguf(oracle, folder / "model.gguf", TYPES[kind])
    config = load_model_config(file)
    sequences = random_tokens(config.vocab_size, LENGTHS)
    return Checkpoint(file, config, sequences, oracle_logits(oracle, sequences))


def check(checkpoint, tp):
    for reference, result in zip(
        checkpoint.logits, run_sharded(checkpoint, tp, MIXED), strict=True
    ):
        assert_parity("logits", reference, result)


@pytest.mark.parametrize("tp", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", WIDE)
def test_every_type_at_every_size(tmp_path, family, kind, tp):
    check(make(tmp_path, family, kind, **WIDE[family]), tp)


@pytest.mark.parametrize("tp", [1, 3])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("family", WIDE)
def test_odd_sizes(tmp_path, family, kind, tp):
    """No row divides into blocks: all matrices but F32 are F16."""
    check(make(tmp_path, family, kind), tp)


@pytest.mark.parametrize("n_groups", [1, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_groups_and_tied_heads(tmp_path, tied, n_groups):
    checkpoint = make(tmp_path, "mamba2", "F32", n_groups=n_groups, tie_word_embeddings=tied)
    assert checkpoint.config.tie_embeddings is tied
    check(checkpoint, 2)


@pytest.mark.parametrize("bias", [True, False])
def test_biases_are_read_off_the_names(tmp_path, bias):
    checkpoint = make(tmp_path, "mamba", "F32", use_bias=bias, use_conv_bias=not bias)
    assert checkpoint.config.use_bias is bias
    assert checkpoint.config.use_conv_bias is not bias
    check(checkpoint, 2)


@pytest.mark.parametrize(
    "overrides",
    [
        {"n_group": 3, "topk_group": 2, "norm_topk_prob": False},
        {"routed_scaling_factor": 1.0, "tie_word_embeddings": True},
    ],
    ids=["groups", "tied"],
)
def test_nemotrons_experts(tmp_path, overrides):
    check(make(tmp_path, "nemotron_experts", "F32", **overrides), 2)


def test_nemotrons_biases(tmp_path):
    checkpoint = make(tmp_path, "nemotron_h", "F32", mlp_bias=True)
    assert checkpoint.config.mlp.use_bias
    check(checkpoint, 2)


@pytest.mark.parametrize("tp", [1, 3])
@pytest.mark.parametrize(
    "overrides",
    [
        {"mamba_rms_norm": True, "mamba_norm_before_gate": False},
        {"rope_parameters": {"rope_theta": 1e11, "rope_type": "default"}},
        {"mamba_conv_bias": False, "mlp_bias": True},
    ],
    ids=["norm", "positions", "biases"],
)
def test_falcon_h1(tmp_path, overrides, tp):
    check(make(tmp_path, "falcon_h1", "F32", **overrides), tp)


def test_model_in_several_files(tmp_path):
    oracle = tiny_oracle("mamba")
    write_gguf(oracle, tmp_path / "tiny.gguf", split_max_tensors=7)
    files = sorted(tmp_path.glob("*.gguf"))
    assert len(files) > 2
    sequences = random_tokens(TINY["mamba"]["vocab_size"], LENGTHS)
    for given in (files[0], files[2], tmp_path):
        config = load_model_config(given)
        check(Checkpoint(given, config, sequences, oracle_logits(oracle, sequences)), 2)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_transformers_reads_the_same_model(tmp_path, kind):
    """Its own reader of GGUF files, which knows Mamba-1 only, on the very file."""
    checkpoint = make(tmp_path, "mamba", kind, **WIDE["mamba"])
    oracle = tiny_oracle("mamba", seed=1, **WIDE["mamba"])
    read = load_gguf_checkpoint(
        str(checkpoint.folder), return_tensors=True, model_to_load=oracle, torch_dtype=torch.float32
    )
    missing, unexpected = oracle.load_state_dict(read["tensors"], strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    logits = oracle_logits(oracle, checkpoint.sequences)
    for reference, result in zip(logits, run_sharded(checkpoint, 2, MIXED), strict=True):
        assert_close("logits", reference, result, 1e-4)
