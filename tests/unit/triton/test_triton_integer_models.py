"""Models and engines with int8 or int4 weights: the Triton kernels against the definitions."""

import parity_harness
import pytest
import torch
from graph_cases import STEPS, Part, answers, assert_same, fixed_shapes
from parity_harness import Driver, random_tokens
from triton_cases import DEVICE, here, overridden

from sidewinder.checkpoint.random import random_shard
from sidewinder.models.registry import build_model
from sidewinder.ops.dispatch import forced
from sidewinder.quantise import BITS, quantise_weights
from sidewinder.testing import assert_close, run_ranks, tiny_config

pytestmark = pytest.mark.usefixtures("unchecked_integers")

WIDE = {"hidden_size": 72, "intermediate_size": 144}
"""Two groups of inputs, the second one short; two ranks cut the inner width within a group."""
LARGE = {
    name: config
    for bits in BITS.values()
    for name, config in (
        (f"int{bits}_row_product", {"block_o": 64, "block_i": 128, "num_warps": 2 * bits}),
        (f"int{bits}_product", {"block_o": 128, "block_t": 64, "num_warps": 4, "num_stages": 2}),
    )
}
"""Few programs: the interpreter takes its time for each."""
DECODES = [[Part(2, 1), Part(0, 1)], [Part(2, 1), Part(1, 1), Part(0, 1)]]


@pytest.mark.parametrize("weight_dtype", BITS)
@pytest.mark.parametrize(
    ("family", "tp", "changes"),
    [("mamba", 1, {}), ("falcon_mamba", 2, WIDE)],
    ids=["mamba", "falcon-mamba on two ranks"],
)
def test_engines_answer_as_the_definitions_do(family, tp, changes, weight_dtype):
    def run(_, collectives):
        steps = [*STEPS[:4], *DECODES]
        return answers(family, collectives, steps=steps, weight_dtype=weight_dtype, **changes)

    with forced("reference"):
        expected = run_ranks(tp, run)
    with forced("triton"), overridden(**LARGE):
        plain = run_ranks(tp, run)
        with fixed_shapes(tp) as recorder:
            fixed = run_ranks(tp, run)
    assert recorder.recorded >= 2 * tp, "decode steps are recorded, too"
    assert_same(expected, plain, 1e-5)
    assert_same(expected, fixed, 1e-5)


@pytest.mark.parametrize(
    ("family", "tp", "weight_dtype"),
    [
        ("granite_experts", 1, "int8"), ("nemotron_experts", 2, "int8"),
        ("jamba_experts", 1, "int8"), ("granite_experts", 1, "int4"),
        ("nemotron_experts", 2, "int4"),
    ],
)  # fmt: skip
def test_experts_multiply_as_the_definitions_do(family, tp, weight_dtype, monkeypatch):
    monkeypatch.setattr(parity_harness, "DEVICE", DEVICE)
    config = tiny_config(family)
    sequences = random_tokens(config.vocab_size, [13, 3])

    def run(group, collectives):
        shard = random_shard(config, group, torch.float32)
        rounded = quantise_weights(shard, config.tie_embeddings, weight_dtype)
        weights = {name: here(weight) for name, weight in rounded.items()}
        model = build_model(config, group, weights, collectives)
        return torch.cat(Driver(model, 17, torch.float32).run(sequences, [10, 1, 2]))

    with forced("reference"):
        expected = run_ranks(tp, run)
    with forced("triton"), overridden(**LARGE):
        found = run_ranks(tp, run)
    for one, other in zip(expected, found, strict=True):
        assert_close("logits", one, other, 1e-4)
