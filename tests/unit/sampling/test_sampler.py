"""Sampling against plain definitions and transformers' own processors."""

import math

import numpy as np
import pytest
import torch
from sampling_cases import VOCAB, random_logits, sampler_with

from sidewinder.engine.plan import Admission
from sidewinder.sampling import SamplingParams, filters, reference
from sidewinder.sampling.finite import check_finite
from sidewinder.sampling.sampler import Sampler, token_logprobs


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty_equals_transformers(penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, seen = random_logits(0), torch.tensor([[3, 5, 3, 36]])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits.clone())[0]
    result = logits[0].clone()
    result[[3, 5, 36]] = filters.repetition_penalty(result[[3, 5, 36]], penalty)
    assert torch.equal(result, expected)


def test_output_penalties_by_definition():
    logits = random_logits(1)[0]
    counts = torch.zeros(VOCAB)
    counts[4], counts[9] = 3, 1
    expected = [
        float(logit) - 0.25 * float(n) - (0.5 if n else 0.0)
        for logit, n in zip(logits, counts, strict=True)
    ]
    result = filters.output_penalties(logits, counts, presence=0.5, frequency=0.25)
    torch.testing.assert_close(result, torch.tensor(expected))


def test_greedy_takes_the_lowest_id_on_ties():
    logits = torch.zeros(2, VOCAB)
    logits[0, [7, 30]] = 2.0
    sampler = sampler_with(SamplingParams(temperature=0), SamplingParams(temperature=0))
    assert sampler.sample(logits, [0, 1]) == [7, 0]


@pytest.mark.parametrize("temperature", [1e-6, 1e-45])
def test_tiny_temperatures_are_greedy(temperature):
    sampler = sampler_with(SamplingParams(temperature=temperature))
    logits = random_logits(3)
    assert sampler.sample(logits, [0]) == [int(logits.argmax())]


def test_draws_do_not_depend_on_the_batch():
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.7, top_k=9, top_p=0.8, min_p=0.01),
        SamplingParams(temperature=1.3, frequency_penalty=0.5),
    ]
    together = sampler_with(*params)
    alone = [Sampler(VOCAB) for _ in params]
    for slot, own in enumerate(params):
        alone[slot].admit(Admission(0, own, 11, ()))
    for step in range(6):
        logits = random_logits(step, rows=3)
        tokens = together.sample(logits[[2, 0, 1]], [2, 0, 1])
        expected = [alone[slot].sample(logits[slot : slot + 1], [0])[0] for slot in (2, 0, 1)]
        assert tokens == expected


def test_filters_apply_one_after_the_other():
    params = SamplingParams(temperature=0.8, top_k=10, top_p=0.7, min_p=0.05)
    logits = random_logits(5)
    drawn = {sampler_with(params, seed=s).sample(logits, [0])[0] for s in range(300)}
    assert drawn == set(reference.kept_weights(logits[0], params))


def test_penalties_know_prompt_and_output():
    params = SamplingParams(temperature=0, repetition_penalty=100)
    sampler = sampler_with(params, prompt=[1])
    logits = torch.zeros(1, VOCAB)
    logits[0, :4] = torch.tensor([1.0, 4.0, 3.0, 2.0])
    # 1 is in the prompt; each drawn token is then avoided too.
    assert [sampler.sample(logits, [0])[0] for _ in range(3)] == [2, 3, 0]


def test_frequency_penalty_counts_output_only():
    params = SamplingParams(temperature=0, frequency_penalty=1.0)
    sampler = sampler_with(params, prompt=[1, 1, 1])
    logits = torch.zeros(1, VOCAB)
    logits[0, 1:3] = torch.tensor([2.5, 1.2])
    assert [sampler.sample(logits, [0])[0] for _ in range(4)] == [1, 1, 2, 1]


def test_endings_are_masked_until_min_tokens():
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(4,))
    sampler = sampler_with(params, eos=[3])
    logits = torch.zeros(1, VOCAB)
    logits[0, 3], logits[0, 4], logits[0, 5] = 9.0, 8.0, 7.0
    assert [sampler.sample(logits, [0])[0] for _ in range(3)] == [5, 5, 3]


def test_a_slot_forgets_its_last_sequence():
    params = SamplingParams(temperature=0, repetition_penalty=100)
    sampler = sampler_with(params)
    logits = random_logits(8).abs()
    first = sampler.sample(logits, [0])
    assert sampler.sample(logits, [0]) != first
    sampler.admit(Admission(0, params, 1, ()))
    assert sampler.sample(logits, [0]) == first


def test_logits_are_not_changed():
    params = SamplingParams(
        temperature=0.5, repetition_penalty=1.5, presence_penalty=1, min_tokens=1
    )
    logits = random_logits(2)
    before = logits.clone()
    sampler_with(params, prompt=[1, 2], eos=[0]).sample(logits, [0])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_raise(value, temperature):
    logits = random_logits(1, rows=2)
    logits[1, 5] = value
    params = SamplingParams(temperature=temperature)
    with pytest.raises(RuntimeError, match="row 1 of 2"):
        sampler_with(params, params).sample(logits, [0, 1])


def test_check_finite_names_the_first_row():
    check_finite(torch.tensor([1.0, -5.0]))
    with pytest.raises(RuntimeError, match="row 1 of 3"):
        check_finite(torch.tensor([1.0, -math.inf, math.nan]))


def test_token_logprobs_by_definition():
    logits = random_logits(4, rows=3)
    reports = token_logprobs(logits, [0, 10, 36], n_top=4)
    for row, token, report in zip(logits.double(), [0, 10, 36], reports, strict=True):
        expected = torch.log_softmax(row, 0)
        assert report.token_id == token
        assert report.logprob == pytest.approx(float(expected[token]), abs=1e-5)
        assert report.rank == 1 + int((expected > expected[token]).sum())
        best = expected.sort(descending=True)
        assert [pair[0] for pair in report.top] == best.indices[:4].tolist()
        assert [pair[1] for pair in report.top] == pytest.approx(best.values[:4].tolist(), abs=1e-5)


def test_logprobs_are_reported_to_those_who_ask():
    wishes = [None, 0, 2, VOCAB + 5]
    params = [SamplingParams(temperature=0, logprobs=wish) for wish in wishes]
    logits = random_logits(6, rows=4)
    sampler = sampler_with(*params)
    tokens = sampler.sample(logits, [0, 1, 2, 3])
    reports = sampler.logprobs(logits, [0, 1, 2, 3], tokens)
    assert reports[0] is None
    assert [len(report.top) for report in reports[1:]] == [0, 2, VOCAB]
    assert all(report.rank == 1 for report in reports[1:])
    assert reports[2].top[0] == (tokens[2], reports[2].logprob)
    total = sum(math.exp(logprob) for _, logprob in reports[3].top)
    assert total == pytest.approx(1.0, abs=1e-5)


def test_logprobs_are_of_the_model_not_of_the_sampler():
    params = SamplingParams(temperature=0, repetition_penalty=5.0, logprobs=0)
    logits = random_logits(9)
    sampler = sampler_with(params, prompt=range(VOCAB))
    (token,) = sampler.sample(logits, [0])
    (report,) = sampler.logprobs(logits, [0], [token])
    assert report.logprob == pytest.approx(float(torch.log_softmax(logits[0], 0)[token]), abs=1e-5)


def bits_of(*tokens):
    mask = np.zeros(VOCAB, dtype=bool)
    mask[list(tokens)] = True
    return np.packbits(mask, bitorder="little").tobytes()


def test_logit_bias_is_added():
    logits = random_logits(10)
    best = int(logits.argmax())
    sampler = sampler_with(SamplingParams(temperature=0, logit_bias={best: -100, 7: 100.0}))
    assert sampler.sample(logits, [0]) == [7]
    other = logits.clone()
    other[0, best] = -torch.inf
    sampler = sampler_with(SamplingParams(temperature=0, logit_bias={best: -100}))
    assert sampler.sample(logits, [0]) == [int(other.argmax())]


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_only_allowed_tokens_are_drawn(temperature):
    params = SamplingParams(temperature=temperature, repetition_penalty=3, logit_bias={1: 100})
    allowed = [bits_of(2, 9, 36), b"", bits_of(30)]
    for seed in range(30):
        sampler = sampler_with(params, params, params, seed=seed)
        logits = random_logits(seed, rows=3)
        first, free, last = sampler.sample(logits, [0, 1, 2], allowed)
        assert first in (2, 9, 36)
        assert last == 30
        alone = sampler_with(params, params, params, seed=seed)
        assert alone.sample(logits[1:2], [1]) == [free]
