"""Models with quantised sums: which sums they are, and what they do to the result."""

import json
from typing import Any

import pytest
import torch

from sidewinder.checkpoint.random import random_shard
from sidewinder.collectives.quantised import all_reduce
from sidewinder.collectives.quantised.all_reduce import QuantisedCollectives
from sidewinder.collectives.quantised.policy import delta_sites, policy_of
from sidewinder.models.registry import build_model
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import relative_error, run_ranks, tiny_config

TWO_CALLS: dict[str, Any] = {
    "num_hidden_layers": 4, "layers_block_type": ["mamba", "mamba", "hybrid", "hybrid"],
}  # fmt: skip
"""Of both blocks. With random weights each call makes more of what was off before it."""

# With random weights Jamba's logits move more the deeper it is: 3 layers, six sums in all.
CASES = [
    ("mamba", {}),
    ("falcon_mamba", {}),
    ("mamba2", {"n_groups": 1}),
    ("mamba2", {"n_groups": 2}),
    ("mamba2", {"n_groups": 4}),
    ("zamba", {}),
    ("zamba2", TWO_CALLS | {"hidden_size": 48, "add_bias_linear": True}),
    ("bamba", {"attention_bias": True, "mlp_bias": True}),
    ("bamba", {"mamba_n_groups": 1}),
    ("granitemoehybrid", {}),
    ("nemotron_h", {"mlp_bias": True}),
    ("falcon_h1", {}),
    ("falcon_h1", {"mamba_n_groups": 1, "mamba_rms_norm": True, "attention_bias": True}),
    ("jamba", {"num_hidden_layers": 3, "mamba_proj_bias": True}),
    ("jamba_experts", {}),
]
LATENT = ("nemotron_experts", {"moe_latent_size": 12, "mlp_bias": True})
"""Where a small error may choose other experts, so that logits move by more."""


class Listening(QuantisedCollectives):
    """Notes the site of every delta, and the shape of every other sum."""

    def __init__(self, inner, policy):
        super().__init__(inner, policy)
        self.sites, self.exact = [], []

    def start_all_reduce_delta(self, x, site, n_decodes):
        self.sites.append((site, n_decodes, tuple(x.shape)))
        return super().start_all_reduce_delta(x, site, n_decodes)

    def all_reduce(self, x):
        self.exact.append(tuple(x.shape))
        return super().all_reduce(x)


def run(config, size, all_reduce, sequences, dtype=torch.float32):
    """Every rank's logits of all rows, and its collectives."""

    def rank(tp, c):
        c = Listening(c, policy_of(all_reduce))
        model = build_model(config, tp, random_shard(config, tp, dtype), c)
        pool = StatePool(config, LocalDims.of(config, tp), 4, dtype, n_pages=8, poison=torch.nan)
        pages = [[2 * i, 2 * i + 1] for i in range(len(sequences))] if config.attention else None
        batch = pack(sequences, list(range(len(sequences))), page_tables=pages)
        return model.logits(model.forward(batch, pool)), c

    return run_ranks(size, rank)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(("family", "overrides"), [*CASES, LATENT], ids=str)
def test_only_deltas_are_quantised(family, overrides, size):
    config = tiny_config(family, **overrides)
    for _, c in run(config, size, "int8", [[5], [1, 2, 3, 4]]):
        assert {site for site, _, _ in c.sites} == set(delta_sites(config))
        assert {(n_decodes, shape) for _, n_decodes, shape in c.sites} == {(1, (5, config.d_model))}
        wide = [shape for shape in c.exact if shape[-1] >= config.d_model]
        assert wide == [(5, config.d_model)], "only the embedding's sum is as wide as a delta"


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("mamba", {}),
        ("falcon_mamba", {"use_bias": False}),
        ("mamba2", {"n_groups": 4}),
        ("bamba", {"mamba_n_groups": 4}),
        ("granitemoehybrid", {"mamba_n_groups": 4}),
        ("nemotron_h", {"n_groups": 4}),
        ("falcon_h1", {}),
        ("jamba_experts", {}),
        ("nemotron_experts", {"moe_latent_size": 12}),
    ],
)
def test_deltas_are_decoded_added_and_normed_in_one_pass(monkeypatch, family, overrides, size):
    fused, one_pass = [], all_reduce.decode_rms_norm

    def noting(*args):
        fused.append(args[1].name)
        return one_pass(*args)

    monkeypatch.setattr(all_reduce, "decode_rms_norm", noting)
    config = tiny_config(family, **overrides)
    run(config, size, "int6", [[1, 2, 3]])
    assert fused == ["int6"] * size * len(delta_sites(config))
    run(config, size, "exact", [[1, 2, 3]])
    assert len(fused) == size * len(delta_sites(config))


@pytest.mark.parametrize("family", ["mamba", "bamba", "nemotron_h", "falcon_h1", "jamba_experts"])
def test_so_are_those_of_single_sites(monkeypatch, tmp_path, family):
    fused, one_pass = [], all_reduce.decode_rms_norm

    def noting(*args):
        fused.append(args[1].name)
        return one_pass(*args)

    monkeypatch.setattr(all_reduce, "decode_rms_norm", noting)
    config = tiny_config(family)
    policy = tmp_path / "policy.json"
    for site in delta_sites(config):
        policy.write_text(json.dumps({"default": "exact", "sites": {site: "int6"}}))
        fused.clear()
        run(config, 2, str(policy), [[1, 2, 3]])
        assert fused == ["int6"] * 2, site


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("family", "overrides"), CASES, ids=str)
def test_logits_move_by_about_the_codec_s_error(family, overrides, size):
    config = tiny_config(family, **overrides)
    exact = run(config, size, "exact", [[1, 2, 3, 4, 5, 6, 7]])[0][0]
    errors = []
    for name in ("int8", "int6", "int4"):
        results = [logits for logits, _ in run(config, size, name, [[1, 2, 3, 4, 5, 6, 7]])]
        assert all(torch.equal(results[0], other) for other in results)
        errors.append(relative_error(results[0], exact))
    assert 0 < errors[0] < 0.03
    assert errors[0] < errors[1] < errors[2] < 0.6


@pytest.mark.parametrize(("family", "overrides"), CASES, ids=str)
def test_a_sequence_does_not_depend_on_the_others(family, overrides):
    config = tiny_config(family, **overrides)
    alone = run(config, 3, "int4", [[7, 8, 9]])[0][0]
    beside = run(config, 3, "int4", [[1, 2, 3, 4, 5], [7, 8, 9]])[0][0]
    assert relative_error(beside[5:], alone) < 1e-4
