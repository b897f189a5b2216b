"""The plan command's data: bytes of every rank, and the collectives that models really make."""

import json
from collections import Counter
from math import prod

import pytest
import torch

from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.checkpoint.random import random_shard
from sidewinder.collectives.base import Collectives
from sidewinder.models.registry import build_model
from sidewinder.parallel.group import TensorParallel
from sidewinder.planning import describe_rule, format_plan, plan_report
from sidewinder.quantise import quantise_weights, rounded_bits
from sidewinder.sharding.dims import LocalDims
from sidewinder.sharding.plan import sharding_plan
from sidewinder.sharding.sizes import loading_bytes
from sidewinder.sharding.traffic import collectives_of
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import TINY, run_ranks, tiny_config

CASES = [
    ("mamba", {}), ("falcon_mamba", {}),
    ("mamba2", {"n_groups": 1}), ("mamba2", {"n_groups": 2}), ("mamba2", {"n_groups": 4}),
    ("zamba", {}), ("zamba", {"n_mamba_heads": 4}), ("zamba", {"n_mamba_heads": 1}),
    ("zamba2", {}), ("zamba2", {"num_mem_blocks": 1, "mamba_ngroups": 1}),
    ("bamba", {}), ("bamba", {"mamba_n_groups": 1}), ("bamba", {"attn_layer_indices": []}),
    ("granitemoehybrid", {}), ("nemotron_h", {}), ("nemotron_h", {"n_groups": 4}),
    ("falcon_h1", {}), ("falcon_h1", {"mamba_n_groups": 1, "mamba_rms_norm": True}),
    ("jamba", {}), ("jamba_experts", {}), ("nemotron_experts", {"moe_latent_size": 12}),
]  # fmt: skip


class Counting(Collectives):
    """Collectives that note what passes: (operation, ranks, elements per row, bytes per row)."""

    def __init__(self, inner, seen):
        self.inner, self.seen = inner, seen
        self.tp, self.path = inner.tp, inner.path

    def note(self, operation, result):
        if self.tp.size > 1:
            # Zamba packs several heads as [heads, tokens, ...]: count elements per token.
            elements = result.numel() // N_TOKENS
            self.seen[operation, self.tp.size, elements, elements * result.itemsize] += 1
        return result

    def all_reduce(self, x):
        return self.note("all_reduce", self.inner.all_reduce(x))

    def all_gather(self, x, sizes):
        return self.note("all_gather", self.inner.all_gather(x, sizes))

    def subgroup(self, partition):
        return Counting(self.inner.subgroup(partition), self.seen)


N_TOKENS = 5


def collectives_made(config, size, dtype):
    """What rank 0 sends when the model runs once."""

    def run(tp, collectives):
        seen = Counter()
        weights = random_shard(config, tp, dtype)
        model = build_model(config, tp, weights, Counting(collectives, seen))
        pool = StatePool(config, LocalDims.of(config, tp), 1, dtype, n_pages=2)
        pages = [[0, 1]] if config.attention else None
        model.logits(model.forward(pack([list(range(N_TOKENS))], [0], page_tables=pages), pool))
        return seen

    return run_ranks(size, run)[0]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize(("family", "overrides"), CASES, ids=str)
def test_lists_the_collectives_that_models_make(family, overrides, size):
    config = tiny_config(family, **overrides)
    listed = Counter()
    for each in collectives_of(config, size, torch.float32):
        listed[each.operation, each.ranks, each.elements, each.bytes] += each.layers
    assert listed == collectives_made(config, size, torch.float32)


@pytest.mark.parametrize("groups", [1, 4])
def test_lists_the_collectives_of_16_bit_models(groups):
    config = tiny_config("mamba2", n_groups=groups)
    listed = Counter()
    for each in collectives_of(config, 3, torch.bfloat16):
        listed[each.operation, each.ranks, each.elements, each.bytes] += each.layers
    assert listed == collectives_made(config, 3, torch.bfloat16)


def test_published_zamba_needs_no_x_proj_sum_at_two_ranks():
    config = parse_model_config(SHAPES["zamba-7b"])

    def names(size):
        return {each.name: each for each in collectives_of(config, size, torch.bfloat16)}

    assert "x_proj sum" not in names(2)
    assert (names(4)["x_proj sum"].ranks, names(4)["x_proj sum"].elements) == (2, 264)
    assert names(2)["out_proj sum"].bytes == 2 * 3712


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "zamba", "granite_experts"])
def test_bytes_of_int8_weights_are_those_of_the_tensors(family, size):
    config = tiny_config(family)
    report = plan_report(config, size, torch.bfloat16, weight_dtype="int8")
    assert report["weight_dtype"] == "int8"
    for rank in report["ranks"]:
        tp = TensorParallel(rank["rank"], size)
        plain = random_shard(config, tp, torch.bfloat16)
        weights = quantise_weights(plain, config.tie_embeddings)
        names = [parameter["name"] for parameter in report["parameters"]]
        assert sorted(names) == sorted(weights)
        for parameter in report["parameters"]:
            assert parameter["bytes"][tp.rank] == weights[parameter["name"]].nbytes
        assert rank["weight_bytes"] == sum(weight.nbytes for weight in weights.values())
        largest = max(plain[name].nbytes for name in plain if rounded_bits(name, "int8"))
        loading = loading_bytes(config, tp, torch.bfloat16, "int8")
        assert loading == rank["weight_bytes"] + largest


def test_a_step_reads_the_int8_head_and_not_the_table():
    config = tiny_config("mamba")
    assert config.tie_embeddings
    rank = plan_report(config, 1, torch.bfloat16, weight_dtype="int8")["ranks"][0]
    table = 2 * config.vocab_size * config.d_model
    assert rank["decode_weight_bytes"] == rank["weight_bytes"] - table


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("family", TINY)
def test_bytes_of_weights_and_state_are_those_of_the_tensors(family, size):
    config = tiny_config(family)
    report = plan_report(config, size, torch.bfloat16, torch.float32)
    for rank in report["ranks"]:
        tp = TensorParallel(rank["rank"], size)
        weights = random_shard(config, tp, torch.bfloat16)
        assert rank["weight_bytes"] == sum(value.nbytes for value in weights.values())
        for parameter in report["parameters"]:
            tensor = weights[parameter["name"]]
            assert parameter["local_shapes"][tp.rank] == list(tensor.shape)
            assert parameter["bytes"][tp.rank] == tensor.nbytes
        dims = LocalDims.of(config, tp)
        pool = StatePool(config, dims, 1, torch.bfloat16, n_pages=1, page_size=1)
        assert rank["state_bytes_per_sequence"] == pool.snapshot(0).n_bytes
        if config.attention is not None:
            kv = (
                2 * len(config.attention.layers) * dims.n_kv_heads_local * config.attention.head_dim
            )
            assert rank["kv_bytes_per_token"] == 2 * kv


def test_totals_and_weights_read_per_step():
    config = tiny_config("zamba", tie_word_embeddings=False)
    report = plan_report(config, 1, torch.float32)
    assert report["total"]["weight_bytes"] == report["ranks"][0]["weight_bytes"]
    count = sum(prod(parameter["shape"]) for parameter in report["parameters"])
    assert report["total"]["parameters"] == count
    shared = sum(
        parameter["bytes"][0]
        for parameter in report["parameters"]
        if parameter["name"].startswith("shared.")
    )
    embedding = 4 * config.vocab_size * config.d_model
    expected = report["total"]["weight_bytes"] + shared - embedding
    assert report["ranks"][0]["decode_weight_bytes"] == expected, "the block is read twice"


def test_a_token_reads_the_experts_that_it_has():
    for name in ("granite_experts", "nemotron_experts"):
        config = tiny_config(name)
        report = plan_report(config, 2, torch.float32)
        experts = config.experts
        of_one = sum(
            parameter["bytes"][0]
            for parameter in report["parameters"]
            if ".experts.3." in parameter["name"]
        )
        skipped = (experts.n_experts - experts.router.n_chosen) * of_one
        rank = report["ranks"][0]
        unread = 0 if config.tie_embeddings else report["parameters"][0]["bytes"][0]
        assert rank["decode_weight_bytes"] == rank["weight_bytes"] - skipped - unread
        line = next(ln for ln in format_plan(report).splitlines() if "experts.*.up" in ln)
        assert line.split()[1] == str(len(experts.layers) * experts.n_experts)


def test_state_of_a_published_model():
    # docs/sharding.md: 64 layers x 5120 channels x (16 + 3) values, 25 MB in float32.
    config = parse_model_config(SHAPES["mamba-2.8b"])
    one = plan_report(config, 1, torch.float32)["ranks"][0]["state_bytes_per_sequence"]
    assert one == 64 * 5120 * 19 * 4
    two = plan_report(config, 2, torch.float32)["ranks"]
    assert [rank["state_bytes_per_sequence"] for rank in two] == [one // 2] * 2


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("family", TINY)
def test_text_shows_every_kind_of_parameter(family, size):
    report = plan_report(tiny_config(family), size, torch.float32)
    assert json.loads(json.dumps(report)) == report
    text = format_plan(report)
    for parameter in report["parameters"]:
        assert parameter["name"].split(".")[-2] in text
    assert ("collectives: none" in text) == (size == 1)
    assert ("out_proj sum" in text) == (size > 1)


def test_text_joins_ranks_that_agree():
    text = format_plan(plan_report(tiny_config("mamba2"), 3, torch.float32))
    line = next(line for line in text.splitlines() if "A_log" in line)
    assert "[3] (0-1), [2] (2)" in line


def test_rules_in_words():
    rules = sharding_plan(tiny_config("mamba"), 2)
    assert describe_rule(rules["final_norm.weight"]) == "replicate"
    assert describe_rule(rules["layers.0.mixer.D"]) == "split dim 0 by channel"
    in_proj = describe_rule(rules["layers.0.mixer.in_proj.weight"])
    assert in_proj == "bands of dim 0: x by channel, z by channel"


def test_too_many_ranks():
    with pytest.raises(ValueError, match="valid tp: 1 to 4"):
        plan_report(tiny_config("zamba"), 5, torch.float32)
