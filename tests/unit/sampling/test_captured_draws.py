"""Draws in fixed shapes give the tokens that the sampler draws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidewinder.sampling.captured import (
    DrawInputs,
    best_tokens,
    draw_tokens,
    high_product,
    split_bits,
)
from sidewinder.sampling.draw import uniform_bits
from sidewinder.sampling.finite import NOT_FINITE
from sidewinder.sampling.params import SamplingParams
from sidewinder.sampling.reference import draw_row
from sidewinder.sampling.vocab_shard import VocabShard
from sidewinder.sharding.shares import split_units
from sidewinder.testing import run_ranks

CASES = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.3, top_p=0.9),
    SamplingParams(temperature=1.5, top_k=7),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.5, min_p=0.02),
    SamplingParams(temperature=0.7, min_p=0.2),
    SamplingParams(temperature=0.0),
]


def inputs_of(params, bits, vocab):
    halves = [split_bits(each) for each in bits]
    return DrawInputs(
        temperature=torch.tensor([1.0 if p.greedy else p.temperature for p in params]),
        min_p=torch.tensor([p.min_p or 0.0 for p in params]),
        top_p=torch.tensor([p.top_p or 1.0 for p in params], dtype=torch.float64),
        top_k=torch.tensor([0 if p.greedy else p.top_k or vocab for p in params]),
        high_bits=torch.tensor([high for high, _ in halves]),
        low_bits=torch.tensor([low for _, low in halves]),
    )


@pytest.mark.parametrize("tp", [1, 3])
@pytest.mark.parametrize("ties", [False, True])
def test_draws_are_the_definition_s(tp, ties):
    vocab, draws = 301, 40
    params = CASES * draws
    logits = torch.randn(len(params), vocab, generator=torch.Generator().manual_seed(1)) * 3
    if ties:
        logits = logits.round()
    bits = [uniform_bits(index, 3) for index in range(len(params))]
    sizes = tuple(share.size for share in split_units(vocab, tp))

    def run(_, collectives):
        shard = VocabShard(sizes, collectives)
        mine = logits[:, shard.start : shard.start + shard.size]
        return draw_tokens(mine, shard, inputs_of(params, bits, vocab)).tolist()

    expected = [
        int(row.argmax()) if p.greedy else draw_row(row, p, b)
        for row, p, b in zip(logits, params, bits, strict=True)
    ]
    assert run_ranks(tp, run) == [expected] * tp


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_are_marked(bad):
    logits = torch.zeros(3, 10)
    logits[1, 4] = bad
    shard = VocabShard.whole(10)
    assert best_tokens(logits, shard).tolist() == [0, NOT_FINITE, 0]
    params = [SamplingParams(temperature=1.0)] * 3
    drawn = draw_tokens(logits, shard, inputs_of(params, [0, 1, 2], 10))
    assert drawn[1] == NOT_FINITE
    assert (drawn[[0, 2]] >= 0).all()


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**62 - 1))
def test_products_of_64_bits(bits, total):
    high, low = (torch.tensor([part]) for part in split_bits(bits))
    assert int(high_product(high, low, torch.tensor([total]))) == (bits * total) >> 64
