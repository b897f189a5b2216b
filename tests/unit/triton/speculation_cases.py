"""Engines whose operators are Triton's, and whose steps are recorded as on a GPU."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from unittest import mock

from triton_cases import DEVICE, overridden

from sidewinder import LLM, llm
from sidewinder.collectives.threads import ThreadCollectives, ThreadGroup
from sidewinder.engine import prompt_graphs, runner
from sidewinder.engine.decode_graphs import DecodeGraphs
from sidewinder.engine.drafts import Drafter
from sidewinder.engine.recorders import CudaRecorder
from sidewinder.ops.dispatch import forced
from sidewinder.testing import save_tiny

WHOLE = {
    "projected_scan": {"block_d": 64},
    "projected_chains": {"block_d": 64},
    "ssd_wide": {"chunk": 16, "block_t": 16},
}
"""One program for all channels, so that the interpreter has less to do."""
SIZES = {
    "mamba": {"num_hidden_layers": 1},
    "falcon_mamba": {"num_hidden_layers": 1},
    "mamba2": {"num_hidden_layers": 1, "num_heads": 2, "head_dim": 24},
    "zamba": {"num_hidden_layers": 5, "attn_layer_period": 1, "attn_layer_offset": 0},
    "bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1], "mamba_n_heads": 2},
}
MOST = 4


class Recorder:
    """CUDA graphs on a card, if there is one rank; else what was run once runs again."""

    def __init__(self, tp):
        self._inner = CudaRecorder() if DEVICE == "cuda" and tp == 1 else None

    def record(self, run):
        return run if self._inner is None else self._inner.record(run)


class ThreadExecutor:
    """Ranks as threads of this process, where tests can replace what they use."""

    def __init__(self, engine, model):
        group = ThreadGroup(engine.tp, timeout_s=300.0)
        self._turns = group.turns
        self._pool = ThreadPoolExecutor(engine.tp)

        def build(rank):
            collectives = ThreadCollectives(group, rank)
            with self._turns.taken():
                return runner.build_runner(engine, model, collectives.tp, collectives)

        self.runners = list(self._pool.map(build, range(engine.tp)))

    def call(self, method, *args):
        def run(own):
            with self._turns.taken():
                return getattr(own, method)(*args)

        first, *_ = self._pool.map(run, self.runners)
        return first

    def check(self):
        pass

    def close(self):
        self._pool.shutdown()


@contextmanager
def engine_of(folder, recorded=True, tp=1, **options):
    """An engine; its steps are recorded, or run plainly. Gives it and the sequences of the steps
    that graphs ran."""
    recorder, steps, start = Recorder(tp) if recorded else None, [], DecodeGraphs.start

    def noted(graphs, sequences, sampler):
        steps.append(sequences)
        return start(graphs, sequences, sampler)

    options = {"dtype": "float32", "max_batch_size": 4, "kv_cache_tokens": 256} | options
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(forced("triton"))
        enter(overridden(**WHOLE))
        enter(mock.patch.object(runner, "recorder_for", return_value=recorder))
        enter(mock.patch.object(DecodeGraphs, "start", noted))
        enter(mock.patch.object(prompt_graphs, "PLAIN_RUNS", 1 << 30))
        if tp > 1:
            enter(mock.patch.object(llm, "start_executor", ThreadExecutor))
        yield enter(LLM(folder, device=DEVICE, tp=tp, threads=1, **options)), steps


class Scripted(Drafter):
    """Knows how texts go on, is now and then wrong, and sometimes says nothing."""

    texts: Sequence[Sequence[int]] = ()
    quiet = 0.3

    def draft(self, most):
        text = tuple(self._text)
        known = next((own for own in self.texts if tuple(own[: len(text)]) == text), ())
        draws = random.Random(len(text) * 7 + len(known))
        if draws.random() < self.quiet:
            return ()
        found = known[len(text) : len(text) + 1 + draws.randrange(MOST)][:most]
        return tuple((token + (draws.random() < 0.25)) % 90 for token in found)


@contextmanager
def drafting(texts):
    """Inside, drafts are `Scripted`."""
    kind = type("OfTexts", (Scripted,), {"texts": texts})
    with mock.patch("sidewinder.engine.scheduler.Drafter", kind):
        yield


def save_short(family, folder):
    """A tiny model of few layers, its attention among them."""
    return save_tiny(family, folder, **SIZES[family])
