"""Sums hidden behind computation: the values of the plain order, whatever the batch."""

import functools
from itertools import pairwise

import pytest
import torch
from parity_cases import CASES
from parity_harness import assert_parity, make_checkpoint, run_sharded

from sidewinder.checkpoint.random import random_shard
from sidewinder.collectives.base import Pending
from sidewinder.collectives.quantised.all_reduce import QuantisedCollectives
from sidewinder.collectives.quantised.policy import PhaseCodecs, Policy
from sidewinder.layers import overlap as overlap_module
from sidewinder.layers.overlap import OVERLAPS, PLAIN, halves, overlap_of, split
from sidewinder.models.registry import build_model
from sidewinder.ops.codec import CODECS
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import assert_close, relative_error, run_ranks, tiny_config, tiny_oracle

MIXED_POLICY = Policy(PhaseCodecs(prefill=CODECS["int8"], decode=CODECS["bf16"]), {})
MIXED = [1, 1, 9, 20, 1, 2, 64, 1, 3]


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory):
    """A checkpoint of `CASES` and its oracle's logits, made once."""

    @functools.cache
    def get(name):
        family, overrides = CASES[name]
        oracle = tiny_oracle(family, **overrides)
        return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), oracle, [1, 70, 2, 33, 5])

    return get


@pytest.fixture
def small_halves(monkeypatch):
    monkeypatch.setattr(overlap_module, "LEAST_ROWS", 2)
    monkeypatch.setattr(overlap_module, "SEAM_ROWS", 1)


@pytest.mark.usefixtures("small_halves")
@pytest.mark.parametrize("tp", [2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_parity_with_everything_hidden(checkpoint_of, name, tp):
    checkpoint = checkpoint_of(name)
    for chunks in (MIXED, [1000]):
        plain = run_sharded(checkpoint, tp, chunks)
        results = run_sharded(checkpoint, tp, chunks, overlap=OVERLAPS["both"])
        for reference, before, result in zip(checkpoint.logits, plain, results, strict=True):
            assert_parity(f"tp={tp}", reference, result)
            assert_close("plain order", before, result, 1e-5)


@pytest.mark.usefixtures("small_halves")
@pytest.mark.parametrize("tp", [2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_hidden_quantised_sums_have_the_values_of_the_plain_order(name, tp):
    family, overrides = CASES[name]
    config = tiny_config(family, **overrides)
    batch = pack([[5], [1, 2, 3, 4] * 9], [0, 1], page_tables=[[0], [1, 2, 3]])

    def rank(tp, c):
        weights = random_shard(config, tp, torch.float32)
        results = []
        for overlap in (PLAIN, OVERLAPS["both"]):
            sums = QuantisedCollectives(c, MIXED_POLICY)
            model = build_model(config, tp, weights, sums, overlap)
            pool = StatePool(config, LocalDims.of(config, tp), 2, torch.float32, n_pages=4)
            results.append(model.logits(model.forward(batch, pool)))
        return results

    found = run_ranks(tp, rank)
    plain, hidden = found[0]
    # A last bit that differs before a codec may move an element by a step of it.
    assert relative_error(hidden, plain) < 1e-3
    for other in found[1:]:
        assert torch.equal(other[0], plain)
        assert torch.equal(other[1], hidden)


def batches():
    yield pack([[0] * 200], [3])
    yield pack([[0], [0], [0] * 300], [4, 1, 2], [7, 0, 64])
    yield pack([[0] * 90, [0] * 100, [0] * 90], [0, 1, 2], [0, 5, 0])
    yield pack([[0]] * 100 + [[0] * 70], list(range(101)))


@pytest.mark.parametrize("batch", list(batches()), ids=lambda batch: str(batch.seqs.bounds[-3:]))
def test_halves_are_the_batch(batch):
    seqs = batch.seqs
    first, second = halves(seqs)
    assert first.n_tokens + second.n_tokens == seqs.n_tokens
    assert min(first.n_tokens, second.n_tokens) >= overlap_module.LEAST_ROWS
    assert (first.n_decodes, second.n_decodes) == (seqs.n_decodes, 0)
    cut = int(first.n_seqs + second.n_seqs > seqs.n_seqs)
    assert torch.equal(torch.cat([first.slots, second.slots[cut:]]), seqs.slots)
    assert torch.equal(torch.cat([first.fresh, second.fresh[cut:]]), seqs.fresh)
    if cut:
        assert second.slots[0] == first.slots[-1]
        assert not second.fresh[0]
        assert (first.bounds[-1] - first.bounds[-2]) % overlap_module.SEAM_ROWS == 0
    for part in (first, second):
        assert part.cu_seqlens.tolist() == list(part.bounds)


def test_a_boundary_near_the_middle_is_the_seam():
    first, second = halves(pack([[0] * 100, [0] * 96], [0, 1]).seqs)
    assert (first.bounds, second.bounds) == ((0, 100), (0, 96))
    assert second.fresh.tolist() == [True]


@pytest.mark.parametrize("lengths", [[127], [1] * 500, [1] * 200 + [63], [60, 60]], ids=str)
def test_small_batches_and_decodes_stay_whole(lengths):
    seqs = pack([[0] * n for n in lengths], list(range(len(lengths)))).seqs
    assert halves(seqs) is None


def test_every_row_can_be_the_seam():
    seqs = pack([[0], [0] * 4, [0] * 3], [2, 0, 1]).seqs
    for row in range(1, 8):
        first, second = split(seqs, row)
        assert (first.n_tokens, second.n_tokens) == (row, 8 - row)
        lengths = [b - a for part in (first, second) for a, b in pairwise(part.bounds)]
        assert sum(lengths) == 8
        assert min(lengths) > 0


def test_drafts_go_on_from_others_in_the_first_half():
    seqs = pack([[0]] * 3 + [[0] * 9], [2, 4, 5, 0], sources=[2, 2, 4, 1], waves=(1, 2)).seqs
    first, second = split(seqs, 7)
    assert first.slots.tolist() == [2, 4, 5, 0]
    assert first.sources.tolist() == [2, 2, 4, 1]
    assert [(part.start, part.stop) for part in first.single_tokens] == [(0, 1), (1, 2), (2, 3)]
    assert (second.slots.tolist(), second.sources.tolist(), second.waves) == ([0], [0], ())


def test_sums_travel_while_the_rank_computes():
    """The order of what a rank does: every delta is waited for after the other half's mixer, and
    goes on to its second exchange in the middle of it."""
    config = tiny_config("mamba", num_hidden_layers=2)

    def rank(tp, c):
        events = []

        class Noting(type(c)):
            def start_all_reduce(self, x):
                events.append("start 1")
                done = super().start_all_reduce(x)
                return Pending(lambda: (events.append("wait 1"), done.wait())[1])

            def start_all_reduce_delta(self, x, site, n_decodes):
                events.append(f"start 2 {site[7]}")
                done = super().start_all_reduce_delta(x, site, n_decodes)
                return Pending(
                    lambda: (events.append(f"wait 2 {site[7]}"), done.wait())[1],
                    lambda: events.append(f"advance 2 {site[7]}"),
                )

        c.__class__ = Noting
        c.subgroup = lambda _: c
        weights = random_shard(config, tp, torch.float32)
        model = build_model(config, tp, weights, c, OVERLAPS["both"])
        pool = StatePool(config, LocalDims.of(config, tp), 1, torch.float32)
        model.forward(pack([[1] * 256], [0]), pool)
        return events

    expected = [
        "start 1", "wait 1", "start 2 0",
        "start 1", "advance 2 0", "wait 1", "start 2 0",
        "wait 2 0", "start 1", "advance 2 0", "wait 1", "start 2 1",
        "wait 2 0", "start 1", "advance 2 1", "wait 1", "start 2 1",
        "wait 2 1", "wait 2 1",
    ]  # fmt: skip
    assert run_ranks(2, rank) == [expected] * 2


def test_auto_hides_where_messages_travel():
    def rank(_, c):
        before = overlap_of("auto", c)
        c.overlaps = True
        return before, overlap_of("auto", c), overlap_of("none", c)

    assert run_ranks(2, rank) == [(PLAIN, OVERLAPS["both"], PLAIN)] * 2
