"""`LLM` with a state cache, on one rank or on two that are threads; what its logits must be."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from sidewinder import LLM, SamplingParams, llm
from sidewinder.collectives.base import SingleRank
from sidewinder.collectives.threads import ThreadCollectives, ThreadGroup
from sidewinder.engine.runner import build_runner
from sidewinder.parallel.launch import _resolved

PROMPT = [(7 * n * n + n) % 97 for n in range(150)]
"""Longer than four intervals of 32; ids below every tiny vocabulary's size."""

OTHERS = [[(5 * n + 3 + k) % 97 for n in range(70)] for k in range(6)]
"""Prompts that share no token at their beginning with `PROMPT` or each other."""


class ThreadRanks:
    """An executor whose ranks are threads of this process."""

    def __init__(self, engine, model):
        group = ThreadGroup(engine.tp, 60.0)
        self._turns = group.turns
        self._threads = ThreadPoolExecutor(engine.tp)
        alone = [SingleRank()]
        ranks = [ThreadCollectives(group, rank) for rank in range(engine.tp)]

        def build(own):
            return build_runner(engine, model, own.tp, own)

        self.runners = self._on_all(build, alone if engine.tp == 1 else ranks)

    def call(self, method, *args):
        first, *_ = self._on_all(lambda runner: getattr(runner, method)(*args), self.runners)
        return first

    def close(self):
        self._threads.shutdown()

    def _on_all(self, function, ranks):
        def run(rank):
            with self._turns.taken():
                return function(rank)

        return [future.result() for future in [self._threads.submit(run, rank) for rank in ranks]]


@contextmanager
def cached(folder, **options):
    """`LLM` with a grid of 32 tokens, poisoned memory, and thread ranks."""
    values = {
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "max_batch_size": 4,
        "kv_cache_tokens": 4096,
        "state_cache_interval": 32,
    } | options

    def start(engine, model):
        return ThreadRanks(_resolved(engine, model, torch.device("cpu"), engine.tp), model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIDEWINDER_POISON", "1")
        patch.setattr(llm, "start_executor", start)
        with LLM(folder, **values) as made:
            yield made


def first_logprobs(model, prompt, **options):
    """(log-softmax of the last prompt row over the whole vocabulary, cached tokens)."""
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=model.model_config.vocab_size)
    (output,) = model.generate([prompt], params, **options)
    return whole_row(output, model.model_config.vocab_size), output.metrics.cached_tokens


def whole_row(output, vocab_size):
    row = torch.full((vocab_size,), torch.nan)
    for token, logprob in output.logprobs[0].top:
        row[token] = logprob
    assert not row.isnan().any()
    return row


def expected_row(model, prompt):
    """The same from a full prefill: `logits` runs every token, whatever is cached."""
    return torch.log_softmax(model.logits([prompt])[0][-1], dim=-1)


def same(name, expected, row, tolerance=1e-5):
    """Relative to the largest logprob."""
    error = (row - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"{name}: relative error {float(error):.3g}"


def fill(model):
    """Run other prompts, so that what was kept of the first one is moved down or evicted."""
    params = SamplingParams(max_tokens=1, temperature=0)
    for prompt in OTHERS:
        model.generate([prompt], params)
