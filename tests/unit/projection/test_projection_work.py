"""The counted work is that of the plan's parameters and of the layers."""

import pytest
import torch

from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.parallel.group import TensorParallel
from sidewinder.planning import plan_report
from sidewinder.projection.counter import Counter
from sidewinder.projection.work import Step
from sidewinder.sharding.dims import LocalDims
from sidewinder.sharding.plan import is_float32
from sidewinder.testing import TINY, tiny_config

BF16, F32 = torch.bfloat16, torch.float32
MATRICES = ("proj.weight", "attention", "mlp", "experts", "linear", "adapter", "lm_head")


LATENT = {"moe_latent_size": 12, "mlp_bias": True}


def counted(config, tp, step, rank=0, dtype=BF16, fuses=True, apart=False, weight_dtype="auto"):
    dims = LocalDims.of(config, TensorParallel(rank, tp))
    return Counter(config, dims, step, dtype, F32, fuses, apart, weight_dtype).all()


@pytest.mark.parametrize("fuses", [True, False])
@pytest.mark.parametrize("tp", [1, 2, 3])
@pytest.mark.parametrize(
    ("family", "changes"),
    [*((family, {}) for family in TINY), ("nemotron_experts", LATENT)],
    ids=str,
)
def test_matrices_are_those_that_a_decode_step_reads(family, changes, tp, fuses):
    config = tiny_config(family, tie_word_embeddings=False, **changes)
    step = Step(1, 1, 1, 4.0)
    for rank in range(tp):
        work = counted(config, tp, step, rank, fuses=fuses)
        found = sum(w.count * w.weight_elements for w in work)
        planned = 0
        for each in plan_report(config, tp, BF16)["parameters"]:
            if any(part in each["name"] for part in MATRICES) and each["name"].endswith("weight"):
                blocks = config.attention.blocks if config.attention else {}
                callers = [block for block in blocks if each["name"].startswith(f"{block}.")]
                reads = len(blocks[callers[0]]) if callers else 1
                planned += reads * each["bytes"][rank] // (4 if is_float32(each["name"]) else 2)
        assert found == planned


@pytest.mark.parametrize(
    "name",
    [
        "mamba-2.8b",
        "mamba2-2.7b",
        "zamba-7b",
        "zamba2-2.7b",
        "bamba-9b",
        "nemotron-h-8b",
        "falcon-h1-7b",
        "jamba-reasoning-3b",
    ],
)
def test_a_decode_step_moves_weights_and_twice_the_state(name):
    config = parse_model_config(SHAPES[name])
    rank = plan_report(config, 1, BF16)["ranks"][0]
    batch = 16
    moved = sum(w.count * w.bytes for w in counted(config, 1, Step(batch, batch, batch)))
    floor = rank["decode_weight_bytes"] + 2 * batch * rank["state_bytes_per_sequence"]
    assert floor < moved < 1.06 * floor, "activations of 16 rows are small beside weights and state"


@pytest.mark.parametrize(
    "name", ["mamba-2.8b", "falcon-mamba-7b", "zamba-7b", "granite-4.0-h-tiny"]
)
@pytest.mark.parametrize(("rounded", "least"), [("int8", 0.3), ("int4", 0.45)])
def test_a_decode_step_moves_integer_weights(name, rounded, least):
    config, moved, planned = parse_model_config(SHAPES[name]), {}, {}
    for weight_dtype in ("auto", rounded):
        work = counted(config, 1, Step(1, 1, 1, 64.0), weight_dtype=weight_dtype)
        moved[weight_dtype] = sum(w.count * w.bytes for w in work)
        rank = plan_report(config, 1, BF16, weight_dtype=weight_dtype)["ranks"][0]
        planned[weight_dtype] = rank["decode_weight_bytes"]
    saved = planned["auto"] - planned[rounded]
    assert saved > least * planned["auto"]
    assert moved["auto"] - moved[rounded] == pytest.approx(saved, rel=1e-6)


@pytest.mark.parametrize(("weight_dtype", "item"), [("int8", 1 + 2 / 64), ("int4", 1 / 2 + 2 / 32)])
def test_integer_weights_are_widened_before_products_of_many_rows(weight_dtype, item):
    config = parse_model_config(SHAPES["falcon-mamba-7b"])

    def widened(tokens, dtype=BF16, sampled=1):
        step = Step(tokens, 1, sampled)
        work = counted(config, 1, step, dtype=dtype, weight_dtype=weight_dtype)
        return [w for w in work if w.name == "widening"]

    assert widened(511) == widened(2048, F32) == []
    in_proj, out_proj = 2 * 8192 * 4096, 8192 * 4096
    (first, second) = widened(512)
    assert first.count * first.bytes == 64 * in_proj * (item + 2)
    assert second.count * second.bytes == 64 * out_proj * (item + 2)
    assert first.count == 64, "one slice holds it"
    assert len(widened(2048, sampled=600)) == 3, "the head, too"
    head = widened(2048, sampled=600)[-1]
    assert head.count == 4, "in four slices"
    assert 4 * head.bytes == 65024 * 4096 * (1 + 2 / 64 + 2), "the head is in int8"


def test_attention_beside_a_mixer_joins_before_the_sum_and_nothing_is_scaled_after_it():
    one_group = {"mamba_n_groups": 1, "mamba_rms_norm": True, "attention_bias": True}
    for changes in ({}, one_group, one_group | {"mamba_proj_bias": True, "projectors_bias": True}):
        config = tiny_config("falcon_h1", **changes)
        work = {w.name: w.count for w in counted(config, 2, Step(4, 4, 4, 4.0))}
        assert work["mixer and attention"] == work["norm"] == config.n_layers
        assert not {"scale", "squares join the sum", "mean of squares"} & work.keys()
        biases = work.get("o bias", 0) + work.get("out_proj bias", 0)
        assert biases == (config.n_layers if changes else 0), "one of both"


def test_prefill_operations_are_two_per_weight_and_token():
    config = parse_model_config(SHAPES["falcon-mamba-7b"])
    work = counted(config, 1, Step(4096, 2, 2))
    products = [w for w in work if w.kind == "gemm" and w.name != "lm_head"]
    assert sum(w.count * w.flops for w in products) == 2 * 4096 * sum(
        w.count * w.weight_elements for w in products
    )


@pytest.mark.parametrize("family", TINY)
def test_two_ranks_share_the_work_of_the_mixers(family):
    config = tiny_config(family)
    step = Step(64, 2, 2, 16.0)
    replicated = {"embedding", "norm", "final norm", "sampling", "residual", "linear"}

    def flops(tp, rank=0):
        return sum(
            w.count * w.flops for w in counted(config, tp, step, rank) if w.name not in replicated
        )

    if config.is_mamba2:  # groups' products are counted on every rank that has the group
        assert flops(2) + flops(2, 1) == pytest.approx(flops(1), rel=0.15)
    else:
        assert flops(2) + flops(2, 1) == pytest.approx(flops(1), rel=1e-9)


@pytest.mark.parametrize("name", ["mamba-2.8b", "falcon-mamba-7b"])
def test_a_few_single_tokens_take_dt_proj_and_scan_in_one_kernel(name):
    """Which then moves what its parts moved, without what they hand on, and with A."""
    config = parse_model_config(SHAPES[name])
    parts = {"norms of dt, B, C", "dt_proj", "scan"}

    def moved(step, fuses=True):
        return {
            w.name: w.bytes
            for w in counted(config, 1, step, fuses=fuses)
            if w.name in parts | {"dt_proj and scan"}
        }

    for n in (1, 4):
        step = Step(n, n, n)
        one, several = moved(step)["dt_proj and scan"], moved(step, fuses=False)
        norms = several.pop("norms of dt, B, C", 0)
        assert bool(norms) == (name == "falcon-mamba-7b")
        handed_on = 2 * n * config.d_inner * 2  # dt, written and read
        rates = 4 * config.d_state * config.d_inner
        assert one == sum(several.values()) - handed_on + rates
    for step in (Step(5, 5, 5), Step(4, 2, 2)):
        assert "dt_proj and scan" not in moved(step)
        assert moved(step) == moved(step, fuses=False)
