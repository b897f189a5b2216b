"""Padded decode steps of fixed shape equal plain ones; what a graph would hold is held to that."""

import pytest
import torch

from sidewinder.checkpoint.random import random_shard
from sidewinder.engine.counted import CallCounter, CountedCollectives
from sidewinder.engine.decode_graphs import DecodeGraphs
from sidewinder.engine.decode_sizes import LARGEST_BUCKET, bucket_of
from sidewinder.engine.plan import Admission, SequenceStep
from sidewinder.engine.recorders import EagerRecorder, Spare
from sidewinder.models.registry import build_model
from sidewinder.sampling import SamplingParams
from sidewinder.sampling.sampler import Sampler
from sidewinder.sampling.vocab_shard import VocabShard
from sidewinder.sharding.dims import LocalDims
from sidewinder.state.batch import pack
from sidewinder.state.pool import StatePool
from sidewinder.testing import TINY, assert_close, run_ranks, tiny_config

SLOTS, PAGES = 5, 10
PROMPTS = {3: [5, 80, 12, 44], 0: [7], 4: list(range(30, 50))}
"""By slot; one goes over a page's end."""
PARAMS = {
    "greedy": SamplingParams(temperature=0),
    "random": SamplingParams(temperature=0.9, top_k=12, top_p=0.9),
    "adjusted": SamplingParams(temperature=0.9, repetition_penalty=1.3),
}


class Rank:
    """One rank's model with a pool, a spare slot and page, and a sampler."""

    def __init__(self, config, tp, collectives, recorder=None):
        self.config, self.counter = config, CallCounter()
        weights = random_shard(config, tp, torch.float32)
        counted = CountedCollectives(collectives, self.counter)
        self.model = build_model(config, tp, weights, counted)
        dims = LocalDims.of(config, tp)
        self.pool = StatePool(
            config, dims, SLOTS + 1, torch.float32, n_pages=PAGES + 1, poison=True
        )
        shard = VocabShard(self.model.dims.vocab_sizes, counted)
        self.sampler = Sampler(config.vocab_size, shard=shard)
        self.graphs = DecodeGraphs(
            self.model, self.pool, recorder or EagerRecorder(), Spare(SLOTS, PAGES), self.counter
        )

    def admit(self, params):
        for slot in PROMPTS:
            self.sampler.admit(Admission(slot, params, seed=slot, prompt_tokens=(1, 2)))

    def pages(self, slot, n_tokens):
        return tuple(2 * slot + n for n in range(-(-n_tokens // 16)))

    def forward(self, texts, starts):
        """Logits of the last rows, as the runner's plain path makes them."""
        attends = self.config.attention is not None
        tables = [list(self.pages(slot, starts[slot] + len(texts[slot]))) for slot in texts]
        batch = pack(
            list(texts.values()),
            list(texts),
            [starts[slot] for slot in texts],
            tables if attends else None,
        )
        hidden = self.model.forward(batch, self.pool)
        return self.model.local_logits(hidden[[end - 1 for end in batch.seqs.bounds[1:]]])

    def decode_plainly(self, tokens, starts):
        logits = self.forward({slot: [token] for slot, token in tokens.items()}, starts)
        return logits, self.sampler.sample(logits, list(tokens))

    def decode_by_graph(self, tokens, starts):
        attends = self.config.attention is not None
        parts = [
            SequenceStep(
                slot, (token,), starts[slot],
                self.pages(slot, starts[slot] + 1) if attends else (), sample=True,
            )
            for slot, token in tokens.items()
        ]  # fmt: skip
        assert self.graphs.serves(parts)
        started = self.graphs.start(parts, self.sampler)
        return started.logits, self.graphs.finish(started, parts, self.sampler)


def text_of(rank, decode, params, steps=4):
    """Prefill the prompts one by one, then decode all of them together, then two of them."""
    rank.admit(params)
    starts, tokens, logits, drawn = {}, {}, [], []
    for slot, prompt in PROMPTS.items():
        first = rank.forward({slot: prompt}, {slot: 0})
        starts[slot], tokens[slot] = len(prompt), int(first.argmax()) % 20
    for number in range(steps):
        chosen = list(tokens) if number < steps - 1 else list(tokens)[:2]
        some, found = decode({slot: tokens[slot] for slot in chosen}, starts)
        logits.append(some.clone())
        drawn.append(list(found))
        for slot, token in zip(chosen, found, strict=True):
            starts[slot] += 1
            tokens[slot] = token
    return torch.cat(logits), drawn


@pytest.mark.parametrize("kind", PARAMS)
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", TINY)
def test_padded_equals_unpadded(family, tp, kind):
    config = tiny_config(family)

    def run(own, collectives):
        plain, graphed = (Rank(config, own, collectives) for _ in range(2))
        expected = text_of(plain, plain.decode_plainly, PARAMS[kind])
        calls = plain.counter.calls
        result = text_of(graphed, graphed.decode_by_graph, PARAMS[kind])
        return expected, result, calls, graphed.counter.calls

    for (logits, tokens), (found_logits, found_tokens), *_ in run_ranks(tp, run):
        assert_close(f"logits of {family}", logits, found_logits, 1e-5)
        assert found_tokens == tokens


@pytest.mark.parametrize(
    "family",
    [
        "mamba",
        "zamba",
        "zamba2",
        "bamba",
        "nemotron_h",
        "falcon_h1",
        "granite_experts",
        "jamba_experts",
    ],
)
def test_padding_touches_the_spare_slot_and_page_only(family):
    config = tiny_config(family)

    def run(own, collectives):
        rank = Rank(config, own, collectives)
        rank.admit(PARAMS["greedy"])
        rank.forward({3: PROMPTS[3]}, {3: 0})
        conv, ssm = rank.pool.conv.clone(), rank.pool.ssm.clone()
        keys = rank.pool.kv.k.clone() if rank.pool.kv else torch.zeros(1, PAGES + 1, 1)
        rank.decode_by_graph({3: 1}, {3: 4})
        others = [0, 1, 2, 4]
        torch.testing.assert_close(rank.pool.conv[:, others], conv[:, others], equal_nan=True)
        torch.testing.assert_close(rank.pool.ssm[:, others], ssm[:, others], equal_nan=True)
        if rank.pool.kv is not None:
            used = [page for page in range(PAGES) if page not in rank.pages(3, 5)]
            torch.testing.assert_close(rank.pool.kv.k[:, used], keys[:, used], equal_nan=True)

    run_ranks(1, run)


class CountingRecorder(EagerRecorder):
    def __init__(self):
        self.recorded = 0

    def record(self, run):
        self.recorded += 1
        return super().record(run)


def test_one_recording_per_bucket_and_way_of_drawing():
    config, recorder = tiny_config("zamba"), CountingRecorder()

    def run(own, collectives):
        rank = Rank(config, own, collectives, recorder)
        text_of(rank, rank.decode_by_graph, PARAMS["greedy"], steps=5)
        assert recorder.recorded == 2, "batches of 3 and 2"
        text_of(rank, rank.decode_by_graph, PARAMS["greedy"], steps=5)
        assert recorder.recorded == 2
        text_of(rank, rank.decode_by_graph, PARAMS["random"], steps=1)
        assert recorder.recorded == 3

    run_ranks(1, run)


def test_collectives_are_counted_in_every_replay():
    class Once:
        """As a CUDA graph: what it holds runs without the model's Python."""

        def record(self, run):
            run()
            return lambda: None

    def run(own, collectives):
        rank = Rank(tiny_config("mamba"), own, collectives, Once())
        rank.admit(PARAMS["greedy"])
        before = rank.counter.calls
        for start in (1, 2):
            rank.decode_by_graph({3: 1}, {3: start})
        return rank.counter.calls - before

    # Embedding, two sums in each of three layers, the candidates' gather; two steps.
    assert run_ranks(2, run) == [16, 16]


def test_a_broken_row_is_found_after_the_replay():
    def run(own, collectives):
        rank = Rank(tiny_config("mamba"), own, collectives)
        rank.admit(PARAMS["greedy"])
        rank.model.final_norm.fill_(torch.nan)
        with pytest.raises(RuntimeError, match="NaN or infinity"):
            rank.decode_by_graph({3: 1}, {3: 0})

    run_ranks(1, run)


def test_a_step_that_cannot_be_recorded_names_the_way_out():
    class Refusing:
        def record(self, _run):
            raise RuntimeError("operation not permitted")

    def run(own, collectives):
        rank = Rank(tiny_config("mamba"), own, collectives, Refusing())
        rank.admit(PARAMS["greedy"])
        with pytest.raises(RuntimeError, match=r"not permitted.*cuda_graphs='off'"):
            rank.decode_by_graph({3: 1}, {3: 0})

    run_ranks(1, run)


def test_only_decode_steps_are_served():
    def run(own, collectives):
        return Rank(tiny_config("mamba"), own, collectives).graphs

    (graphs,) = run_ranks(1, run)
    decode = SequenceStep(0, (1,), 3, sample=True)
    assert graphs.serves([decode])
    assert not graphs.serves([])
    assert not graphs.serves([decode] * (LARGEST_BUCKET + 1))
    for other in (
        SequenceStep(0, (1, 2), 3, sample=True),
        SequenceStep(0, (1,), 3),
        SequenceStep(0, (1,), 3, sample=True, score=(2,)),
        SequenceStep(0, (1,), 3, sample=True, return_logits=True),
    ):
        assert not graphs.serves([decode, other])


def test_buckets_hold_their_batches_with_little_padding():
    for n in range(1, LARGEST_BUCKET + 1):
        assert n <= bucket_of(n) <= max(n + 15, 4)
        assert bucket_of(bucket_of(n)) == bucket_of(n)
    assert len({bucket_of(n) for n in range(1, 33)}) == 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_replays_what_it_recorded():
    from sidewinder.engine.recorders import CudaRecorder

    x, outputs = torch.ones(4, device="cuda"), {}
    replay = CudaRecorder().record(lambda: outputs.update(y=x * 2))
    x.fill_(5)
    replay()
    assert outputs["y"].tolist() == [10.0] * 4
