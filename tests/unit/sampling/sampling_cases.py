"""Rows of logits, and samplers whose slots are in use."""

import torch

from sidewinder.engine.plan import Admission
from sidewinder.sampling.sampler import Sampler

VOCAB = 37


def random_logits(seed, rows=1, vocab=VOCAB, scale=3.0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def sampler_with(*params, prompt=(), eos=(), seed=11):
    """One request with each of `params`, in slots 0, 1, ..."""
    sampler = Sampler(VOCAB)
    for slot, own in enumerate(params):
        sampler.admit(Admission(slot, own, seed, tuple(prompt), tuple(eos)))
    return sampler
