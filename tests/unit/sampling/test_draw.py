"""Drawing from sharded rows against the definition, and the definition against transformers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_cases import random_logits

from sidewinder.engine.plan import Admission
from sidewinder.sampling import SamplingParams, draw, reference
from sidewinder.sampling.draw import uniform_bits
from sidewinder.sampling.sampler import Sampler
from sidewinder.sampling.vocab_shard import VocabShard
from sidewinder.sharding.shares import split_units
from sidewinder.testing import run_ranks


def sample_on_ranks(tp, logits, params, seed=11, steps=1):
    """What every rank draws, `[ranks][steps][rows]`; checks nothing."""
    shares = split_units(logits.shape[1], tp)
    sizes = tuple(share.size for share in shares)

    def rank(tp, collectives):
        sampler = Sampler(logits.shape[1], shard=VocabShard(sizes, collectives))
        for slot, own in enumerate(params):
            sampler.admit(Admission(slot, own, seed + slot, ()))
        own = shares[tp.rank]
        local = logits[:, own.start : own.stop]
        return [sampler.sample(local, list(range(len(params)))) for _ in range(steps)]

    return run_ranks(tp, rank)


def reference_tokens(logits, params, seed=11, step=0):
    return [
        int(row.argmax())
        if own.greedy
        else reference.draw_row(row, own, uniform_bits(seed + slot, step))
        for slot, (row, own) in enumerate(zip(logits, params, strict=True))
    ]


# --- sharded = whole = the definition ------------------------------------------------------------

some_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-5, 0.3, 1.0, 4.0]),
    top_k=st.sampled_from([None, 0, 1, 2, 7, 50, 10_000]),
    top_p=st.sampled_from([None, 1.0, 1e-9, 0.3, 0.9, 0.9999]),
    min_p=st.sampled_from([None, 0.0, 0.05, 1.0]),
)


@settings(deadline=None, max_examples=120)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([5, 37, 64, 200, 1003]),
    st.sampled_from([0.01, 3.0, 30.0]),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    st.lists(some_params, min_size=1, max_size=5),
)
def test_every_rank_draws_what_the_definition_gives(seed, vocab, scale, tp, ties, params):
    logits = random_logits(seed, len(params), vocab, scale)
    if ties:
        logits = logits.round()
    expected = [reference_tokens(logits, params, step=step) for step in range(2)]
    for tokens in sample_on_ranks(tp, logits, params, steps=2):
        assert tokens == expected


def test_a_peaked_row_beside_a_flat_one(monkeypatch):
    """The flat row needs all candidates, the other the first few; both go through one call."""
    monkeypatch.setattr(draw, "FIRST_CANDIDATES", 2)
    logits = random_logits(0, 2, 2000, 0.001)
    logits[1] *= 10_000
    params = [SamplingParams(temperature=1.0, top_p=0.95)] * 2
    expected = [reference_tokens(logits, params, step=step) for step in range(3)]
    assert sample_on_ranks(2, logits, params, steps=3) == [expected] * 2


@pytest.mark.parametrize("tp", [1, 2])
def test_bfloat16_logits_and_masked_shares(tp):
    """One rank's columns all masked, ties everywhere."""
    logits = random_logits(3, 3, 40).bfloat16()
    logits[:, 20:] = -math.inf
    params = [SamplingParams(temperature=t, top_k=5) for t in (0.0, 1.0, 3.0)]
    expected = reference_tokens(logits.float(), params)
    assert [tokens[0] for tokens in sample_on_ranks(tp, logits, params)] == [expected] * tp


def test_greedy_ties_go_to_the_lowest_id_of_all_ranks():
    logits = torch.zeros(2, 30)
    logits[0, [12, 25]] = 2.0
    greedy = [SamplingParams(temperature=0)] * 2
    assert sample_on_ranks(3, logits, greedy) == [[[12, 0]]] * 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_all_ranks_raise_where_one_rank_has_a_value_that_is_not_finite(value):
    logits = random_logits(1, 2, 30)
    logits[1, 25] = value
    raised = []

    def rank(tp, collectives):
        sampler = Sampler(30, shard=VocabShard((15, 15), collectives))
        for slot in range(2):
            sampler.admit(Admission(slot, SamplingParams(temperature=0, min_tokens=1), 1, ()))
        with pytest.raises(RuntimeError, match="row 1 of 2"):
            sampler.sample(logits[:, 15 * tp.rank : 15 * tp.rank + 15], [0, 1])
        raised.append(tp.rank)

    run_ranks(2, rank)
    assert sorted(raised) == [0, 1]


@pytest.mark.parametrize("tp", [2, 3])
def test_penalties_and_endings_on_shares(tp):
    params = SamplingParams(
        temperature=0.9, repetition_penalty=1.5, frequency_penalty=0.5, presence_penalty=0.2,
        min_tokens=3, stop_token_ids=(0, 36), logprobs=3,
    )  # fmt: skip
    logits = random_logits(5, 1)

    def rank(tp, collectives):
        sizes = tuple(share.size for share in split_units(37, tp.size))
        shard = VocabShard(sizes, collectives)
        sampler = Sampler(37, shard=shard)
        sampler.admit(Admission(0, params, 3, (1, 2, 30), (5,)))
        local = logits[:, shard.start : shard.start + shard.size]
        drawn = [sampler.sample(local, [0])[0] for _ in range(8)]
        return drawn, sampler.logprobs(local, [0], drawn[-1:])

    whole = run_ranks(1, rank)[0]
    assert run_ranks(tp, rank) == [whole] * tp


# --- the definition ------------------------------------------------------------------------------


def kept_by_transformers(logits, params):
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = [TemperatureLogitsWarper(params.temperature)]
    if params.top_k is not None:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p is not None:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p is not None:
        warpers.append(MinPLogitsWarper(params.min_p))
    row = logits[None].clone()
    for warper in warpers:
        row = warper(torch.zeros(1, 0, dtype=torch.long), row)
    return {int(token) for token in torch.nonzero(torch.isfinite(row[0]))[:, 0]}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 1}, {"top_k": 7}, {"top_k": 42}, {"top_p": 0.001}, {"top_p": 0.3},
        {"top_p": 0.999}, {"min_p": 0.01}, {"min_p": 0.2}, {"min_p": 1.0},
        {"top_k": 10, "top_p": 0.7, "min_p": 0.05, "temperature": 0.8},
    ],
    ids=str,
)  # fmt: skip
def test_the_definition_keeps_what_transformers_keeps(seed, filters):
    params = SamplingParams(**({"temperature": 1.0} | filters))
    logits = random_logits(seed)[0]
    assert set(reference.kept_weights(logits, params)) == kept_by_transformers(logits, params)


def test_top_p_takes_the_lower_id_among_equals():
    kept = reference.kept_weights(torch.zeros(8), SamplingParams(temperature=1, top_p=0.5))
    assert list(kept) == [0, 1, 2, 3]


def test_weights_are_in_proportion_to_probabilities():
    logits = random_logits(2)[0]
    kept = reference.kept_weights(logits, SamplingParams(temperature=0.7))
    total = sum(kept.values())
    expected = torch.softmax(logits.double() / 0.7, 0)
    for token, weight in kept.items():
        assert weight / total == pytest.approx(float(expected[token]), rel=1e-5)


@given(st.integers(0, 2**64 - 1), st.integers(0, 10_000))
def test_a_draw_inverts_the_cumulative_distribution(bits, seed):
    logits = random_logits(seed)[0]
    token = reference.draw_row(logits, SamplingParams(temperature=1), bits)
    cumulative = torch.softmax(logits, 0).double().cumsum(0)
    place = bits / 2**64 * float(cumulative[-1])
    below = float(cumulative[token - 1]) if token else 0.0
    assert below - 1e-6 <= place <= float(cumulative[token]) + 1e-6


@pytest.mark.parametrize("bits", [0, 2**63, 2**64 - 1], ids=["least", "middle", "greatest"])
def test_a_draw_never_takes_what_was_masked(bits):
    logits = torch.full((37,), -math.inf)
    logits[[5, 20]] = torch.tensor([0.0, 1.0])
    rows = draw.Rows.of(
        logits[None], torch.ones(1), [SamplingParams(temperature=1)], [bits], vocab_size=37
    )
    assert draw.draw(rows, VocabShard.whole(37))[0] in (5, 20)


def test_frequencies_follow_the_distribution():
    n, logits = 20_000, torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    params = [SamplingParams(temperature=1.0)] * n
    bits = [uniform_bits(7, i) for i in range(n)]
    rows = draw.Rows.of(logits.expand(n, 4), torch.full((n,), 2.0), params, bits, vocab_size=4)
    tokens = draw.draw(rows, VocabShard.whole(4))
    expected = torch.softmax(logits[0], 0)
    found = torch.bincount(torch.tensor(tokens), minlength=4) / n
    # Five standard deviations of a binomial proportion.
    assert torch.all((found - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt())


def test_uniform_bits_are_splitmix64():
    """The reference sequence of the published generator, seeded with 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    mask = 2**64 - 1

    def next_of(state):
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    gamma = 0x9E3779B97F4A7C15
    assert [next_of((1234567 + gamma * n) & mask) for n in (1, 2, 3)] == expected
    mixed = next_of(99)
    assert uniform_bits(99, 4) == next_of((mixed + 5 * gamma) & mask)
