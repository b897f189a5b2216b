"""Sizes of decode steps with drafts, and what a graph's buffers then hold."""

from types import SimpleNamespace

import pytest
import torch

from sidewinder.engine.buckets import CHAIN_END, INTEGERS, Bucket
from sidewinder.engine.counted import CallCounter
from sidewinder.engine.decode_graphs import DecodeGraphs
from sidewinder.engine.decode_sizes import StepSize, sizes_with_drafts
from sidewinder.engine.drafts import MOST_ROWS
from sidewinder.engine.packing import pack_step
from sidewinder.engine.plan import Admission, SequenceStep
from sidewinder.engine.recorders import EagerRecorder, Spare
from sidewinder.sampling import SamplingParams
from sidewinder.sampling.draw import uniform_bits
from sidewinder.sampling.sampler import Sampler

CPU = torch.device("cpu")


def part(slot, n_drafts, start=20, **options):
    """A sequence whose drafts have the slots from `slot` on."""
    drafts = tuple(range(slot + 1, slot + 1 + n_drafts))
    tokens = tuple(range(100 + slot, 101 + slot + n_drafts))
    return SequenceStep(slot, tokens, start, sample=True, draft_slots=drafts, **options)


@pytest.mark.parametrize(
    ("n_drafts", "size"),
    [
        ([0], StepSize(1)),
        ([0, 0, 0], StepSize(4)),
        ([1], StepSize(2, 1)),
        ([8], StepSize(9, 1)),
        ([9], StepSize(16, 1)),
        ([2, 0, 1], StepSize(9, 4)),
        ([0] * 14 + [1], StepSize(16, 16)),
    ],
)
def test_the_smallest_size_that_holds_a_step(n_drafts, size):
    assert StepSize.of([part(20 * i, n) for i, n in enumerate(n_drafts)]) == size


@pytest.mark.parametrize(("start", "pages"), [(253, 16), (254, 32), (511, 64)])
def test_pages_are_those_of_the_last_draft(start, pages):
    assert StepSize.of([part(0, 2, start), part(9, 0, 3)], page_size=16).pages == pages


def test_sizes_for_a_batch_are_those_of_its_steps():
    for batch, speculate in ((1, 8), (2, 3), (20, 15), (3, 1)):
        found = set()
        for n_seqs in range(1, batch + 1):
            for n_drafts in range(1, min(MOST_ROWS - n_seqs, n_seqs * speculate) + 1):
                each = [n_drafts // n_seqs + (i < n_drafts % n_seqs) for i in range(n_seqs)]
                found.add(StepSize.of([part(20 * i, n) for i, n in enumerate(each)]))
        assert set(sizes_with_drafts(batch, speculate)) == found
    assert sizes_with_drafts(8, 0) == []


def graphs_of(page_size=0):
    """Graphs whose model is never run."""
    kv = SimpleNamespace(page_size=page_size) if page_size else None
    pool = SimpleNamespace(conv=torch.empty(1, 50, 1), kv=kv)
    one = SimpleNamespace(tp=SimpleNamespace(rank=0, size=1))
    dims = SimpleNamespace(vocab_sizes=(200,))
    model = SimpleNamespace(collectives=one, dims=dims, config=SimpleNamespace(vocab_size=200))
    return DecodeGraphs(model, pool, EagerRecorder(), Spare(49, 7), CallCounter())


def test_what_buffers_hold():
    """A row a token, each at its own position; padding is the last chain's end, in the spare slot;
    draws have the bits of their own place in the text."""
    graphs, sampler = graphs_of(page_size=16), Sampler(200)
    for slot in (0, 10):
        params = SamplingParams(temperature=0.5 if slot else 0)
        sampler.admit(Admission(slot, params, seed=slot, prompt_tokens=()))
    parts = [part(0, 1, 15, pages=(3, 4)), part(10, 2, 20, pages=(5, 6))]
    slots = [0, 0, 10, 10, 10]
    draws = sampler.unadjusted(slots, [b""] * 5)
    assert [draw.bits for draw in draws[2:]] == [uniform_bits(10, nth) for nth in range(3)]
    size = StepSize(9, 4, 2)
    integers, numbers = graphs._rows(parts, draws, size)
    columns = dict(zip(INTEGERS, zip(*integers, strict=True), strict=False))
    assert columns["token"] == (100, 101, 110, 111, 112, 0, 0, 0, 0)
    assert columns["slot"] == (0, 1, 10, 11, 12, 49, 49, 49, 49)
    assert columns["start"] == (15, 16, 20, 21, 22, 0, 0, 0, 0)
    assert columns["chain_end"][:4] == (2, 9, 9, 9)
    assert columns["top_k"] == (0, 0, 200, 200, 200, 0, 0, 0, 0)
    assert [row[len(INTEGERS) :] for row in integers] == [[3, 4]] * 2 + [[5, 6]] * 3 + [[7, 7]] * 4
    assert [number[0] for number in numbers] == [1, 1, 0.5, 0.5, 0.5, 1, 1, 1, 1]

    bucket = Bucket.of(size, CPU)
    batch = bucket.batch()
    bucket.fill(integers, numbers)
    graphs._refresh(batch, bucket)
    assert batch.seqs.chains.tolist() == [0, 2, 9, 9, 9]
    assert batch.seqs.fresh.tolist() == [False] * 5 + [True] * 4
    assert len(INTEGERS) - 1 == CHAIN_END


def test_while_it_is_recorded_all_rows_are_padding():
    integers, _ = graphs_of()._rows([], [], StepSize(5, 2))
    assert {row[INTEGERS.index("slot")] for row in integers} == {49}
    assert [row[CHAIN_END] for row in integers[:2]] == [5, 5]


def test_steps_with_too_many_rows_or_with_prompts_are_not_served():
    graphs = graphs_of()
    assert graphs.serves([part(0, 7), part(10, 7)])
    assert not graphs.serves([part(0, 8), part(10, 7)])
    prompt = SequenceStep(30, (1, 2, 3), 0, sample=True)
    assert not graphs.serves([part(0, 7), prompt])


def test_chains_lie_side_by_side_and_waves_one_behind_the_other():
    prompt = SequenceStep(40, (1, 2), 0, sample=True)
    parts = [part(0, 2), part(10, 0), part(20, 1), prompt]
    chained, rows = pack_step(parts, CPU, paged=False, chained=True)
    assert chained.seqs.chains.tolist() == [0, 3, 4, 6]
    assert chained.seqs.slots.tolist() == [0, 1, 2, 10, 20, 21, 40]
    assert chained.seqs.sources.tolist() == [0, 0, 1, 10, 20, 20, 40]
    assert chained.starts == (20, 21, 22, 20, 20, 21, 0)
    assert rows == [[0, 1, 2], [3], [4, 5], [6, 7]]
    waves, rows = pack_step(parts, CPU, paged=False)
    assert (waves.seqs.chains, waves.seqs.waves) == (None, (3, 5))
    assert waves.seqs.slots.tolist() == [0, 10, 20, 1, 21, 2, 40]
    assert rows == [[0, 3, 5], [1], [2, 4], [6, 7]]
    plain, _ = pack_step([part(0, 0), prompt], CPU, paged=False, chained=True)
    assert plain.seqs.chains is None, "steps without drafts are as ever"
