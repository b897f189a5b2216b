import math

import pytest
import torch

from sidewinder.agreement import AgreementMeter


def test_figures_of_known_distributions():
    reference = torch.tensor([[0.5, 0.25, 0.25]] * 99 + [[0.9, 0.05, 0.05]]).log()
    other = torch.tensor([[0.25, 0.5, 0.25]] * 99 + [[0.9, 0.05, 0.05]]).log()
    meter = AgreementMeter()
    tokens = torch.zeros(100, dtype=torch.int64)
    for rows in (slice(0, 30), slice(30, 100)):
        meter.add(reference[rows], other[rows], tokens[rows])
    result = meter.result()
    kl = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert result.n_predicted == 100
    assert result.mean_kl == pytest.approx(0.99 * kl, rel=1e-5)
    assert result.p99_kl == pytest.approx(kl, rel=1e-5)
    assert result.top1_agreement == 0.01
    assert result.reference_perplexity == pytest.approx((0.5**99 * 0.9) ** -0.01, rel=1e-5)
    assert result.perplexity == pytest.approx((0.25**99 * 0.9) ** -0.01, rel=1e-5)


def test_the_same_logits_agree_wholly():
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    meter = AgreementMeter()
    meter.add(logits, logits, torch.arange(7))
    result = meter.result()
    assert (result.mean_kl, result.p99_kl, result.top1_agreement) == (0, 0, 1)
    assert result.perplexity == result.reference_perplexity


def test_ties_of_the_reference_are_counted_apart():
    reference = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.5, 0.0], [1.0, 1.0, 0.0]])
    other = torch.tensor([[1.0, 1.1, 0.0], [1.0, 1.1, 0.0], [1.0, 0.9, 0.0]])
    meter = AgreementMeter()
    meter.add(reference, other, torch.tensor([0, 1, 2]))
    result = meter.result()
    assert result.top1_agreement == pytest.approx(1 / 3)
    assert result.top1_ties == pytest.approx(1 / 3)
    assert result.top1_error == pytest.approx(math.sqrt(2 / 9 / 3))
