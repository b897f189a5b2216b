"""Our logits against transformers' whole, uncached float32 forward, for every way of running."""

import functools
from dataclasses import replace

import pytest
import torch
from parity_cases import CASES
from parity_harness import (
    Driver,
    assert_parity,
    make_checkpoint,
    oracle_logits,
    random_tokens,
    run_sharded,
)
from random_cases import random_case

from sidewinder.checkpoint.reader import load_shard
from sidewinder.collectives.base import SingleRank
from sidewinder.config import load_model_config
from sidewinder.models.registry import build_model
from sidewinder.ops.dispatch import forced
from sidewinder.parallel.group import TensorParallel
from sidewinder.testing import TINY, assert_close, relative_error, run_ranks, tiny_oracle

LENGTHS = [1, 70, 2, 33, 5, 66]
"""Whole sequences of a checkpoint; three run at once, so slots are used twice."""

FORMS = {"whole": [1000], "chunks of 3": [3], "chunks of 7": [7], "chunks of 64": [64]}
MIXED = [1, 1, 9, 20, 1, 2, 64, 1, 3]
"""Parts in turn over the running sequences: prefill and decode in one step."""


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory):
    """Make a checkpoint and its oracle's logits once per session."""
    made = {}

    def get(name, family, overrides, lengths=LENGTHS):
        if name not in made:
            oracle = tiny_oracle(family, **overrides)
            made[name] = make_checkpoint(tmp_path_factory.mktemp("checkpoint"), oracle, lengths)
        return made[name]

    return get


@pytest.fixture
def checkpoint(request, checkpoint_of):
    return checkpoint_of(request.param, *CASES[request.param])


def check(checkpoint, tp, chunks):
    results = run_sharded(checkpoint, tp, chunks)
    for number, (reference, result) in enumerate(zip(checkpoint.logits, results, strict=True)):
        assert_parity(f"sequence {number}", reference, result)


@pytest.mark.parametrize("tp", [1, 2, 3, 4])
@pytest.mark.parametrize("checkpoint", CASES, indirect=True)
def test_mixed_steps_in_reused_slots(checkpoint, tp):
    check(checkpoint, tp, MIXED)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("checkpoint", CASES, indirect=True)
def test_whole_and_chunked(checkpoint, form):
    check(checkpoint, 1, FORMS[form])


@pytest.mark.parametrize(("tp", "form"), [(2, "whole"), (3, "chunks of 7"), (4, "chunks of 64")])
@pytest.mark.parametrize("checkpoint", CASES, indirect=True)
def test_whole_and_chunked_on_ranks(checkpoint, tp, form):
    check(checkpoint, tp, FORMS[form])


@pytest.mark.parametrize("checkpoint", CASES, indirect=True)
def test_step_by_step(checkpoint):
    check(checkpoint, 1, [1])


@pytest.mark.parametrize("tp", [2, 3, 4])
@pytest.mark.parametrize("family", TINY)
def test_step_by_step_on_ranks(checkpoint_of, family, tp):
    name = next(name for name, (of, _) in CASES.items() if of == family)
    check(checkpoint_of(name, *CASES[name]), tp, [1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", TINY)
def test_random_configurations(checkpoint_of, family, seed):
    checkpoint = checkpoint_of(
        f"{family} {seed}", family, random_case(family, seed), [40, 9, 1, 21]
    )
    for tp in (1, 2, 3, 4):
        check(checkpoint, tp, MIXED)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("family", TINY)
def test_every_backend_agrees(checkpoint_of, family, backend):
    name = next(name for name, (of, _) in CASES.items() if of == family)
    with forced(backend):
        check(checkpoint_of(name, *CASES[name]), 2, MIXED)


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY)
def test_a_long_sequence_in_whole_and_in_chunks(checkpoint_of, family):
    hybrid = {"mamba_d_state": 3, "intermediate_size": 12}
    sizes = hybrid if "mamba_d_state" in TINY[family] else {"state_size": 3}
    checkpoint = checkpoint_of(f"{family} long", family, sizes, lengths=[4100])
    check(checkpoint, 1, [4100])
    check(checkpoint, 2, [333])


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", TINY)
def test_neighbours_do_not_matter(checkpoint_of, family, tp):
    name = next(name for name, (of, _) in CASES.items() if of == family)
    checkpoint = checkpoint_of(name, *CASES[name])
    sequence = checkpoint.sequences[1]
    alone = run_sharded(checkpoint, tp, [len(sequence)], [sequence])[0]
    others = random_tokens(checkpoint.config.vocab_size, [50, 80, 3, 90], seed=5)
    among = run_sharded(checkpoint, tp, MIXED, [*others[:2], sequence, *others[2:]])[2]
    assert_close("logits", alone, among, 1e-5)


@pytest.fixture(scope="session")
def bfloat16_logits():
    """The oracle's own logits of a checkpoint in bfloat16, once per session."""
    from transformers import AutoModelForCausalLM

    @functools.cache
    def get(folder):
        oracle = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, experts_implementation="eager"
        )
        config = load_model_config(folder)
        return oracle_logits(oracle, random_tokens(config.vocab_size, LENGTHS))

    return get


@pytest.mark.parametrize("tp", [1, 2, 3])
@pytest.mark.parametrize("checkpoint", CASES, indirect=True)
def test_bfloat16_is_as_close_as_the_oracles_own(checkpoint, bfloat16_logits, tp):
    own = bfloat16_logits(checkpoint.folder)
    ours = run_sharded(checkpoint, tp, MIXED, dtype=torch.bfloat16)
    assert all(result.dtype == torch.float32 for result in ours)
    reference, own, ours = (torch.cat(part) for part in (checkpoint.logits, own, ours))
    if checkpoint.config.experts is not None:
        # Where two experts are as good, rounding decides, and the row is another: in either run.
        errors = [(part - reference).abs().amax(1).median() for part in (ours, own)]
        assert errors[0] <= 2 * errors[1]
        return
    allowed = 2 * relative_error(own, reference)
    assert_close("logits", reference, ours, allowed)


class Counting:
    """Collectives that note the width of every sum."""

    def __init__(self, collectives, widths):
        self.collectives, self.widths, self.tp = collectives, widths, collectives.tp

    def all_reduce(self, x):
        self.widths.append((self.tp.size, x.shape[-1]))
        return self.collectives.all_reduce(x)

    def subgroup(self, partition):
        return Counting(self.collectives.subgroup(partition), self.widths)

    def __getattr__(self, name):
        return getattr(self.collectives, name)


@pytest.mark.parametrize(("tp", "groups"), [(2, set()), (4, {2})])
def test_zambas_heads_need_no_or_a_smaller_x_proj_sum(checkpoint_of, tp, groups):
    """Sums as wide as a head's dt, B, C: none where ranks hold heads, else among its ranks."""
    checkpoint = checkpoint_of("zamba-two-heads", *CASES["zamba-two-heads"])
    config = checkpoint.config

    def rank(rank_of, collectives):
        widths = []
        counting = Counting(collectives, widths)
        weights = load_shard(checkpoint.folder, config, rank_of, torch.float32)
        model = build_model(config, rank_of, weights, counting)
        Driver(model, 8, torch.float32).run([[1, 2, 3]], [3])
        return [size for size, width in widths if width == config.dt_rank + 2 * config.d_state]

    for sizes in run_ranks(tp, rank):
        assert set(sizes) == groups


def test_an_unknown_family_lists_those_that_exist(checkpoint_of):
    config = checkpoint_of("mamba", *CASES["mamba"]).config
    with pytest.raises(
        ValueError,
        match=r"'rwkv'.*mamba, .*, bamba, granitemoehybrid, nemotron_h, falcon_h1, jamba",
    ):
        build_model(replace(config, family="rwkv"), TensorParallel(), {}, SingleRank())
