"""Requests, aborts, kept states, disk failures, restarts in any order: nothing stale, no leak."""

import itertools
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from toy_ranks import ToyRanks, state_of

from sidewinder.engine.limits import Limits
from sidewinder.engine.request import Request
from sidewinder.engine.scheduler import Scheduler
from sidewinder.sampling import SamplingParams
from sidewinder.state.cache import boundaries, cache, tiers
from sidewinder.state.cache.cache import StateCache
from sidewinder.state.cache.disk import DiskIndex
from sidewinder.state.cache.entry import CacheSizes

SIZES = {
    "device only": {"device_bytes": 40},
    "device and host": {"device_bytes": 30, "host_bytes": 60},
    "all tiers": {"device_bytes": 30, "host_bytes": 40, "disk": True},
    "one state and a disk": {"device_bytes": 29, "disk": True},
}


def toy_output(prompt, n_tokens):
    tokens = list(prompt)
    for _ in range(n_tokens):
        tokens.append(state_of(tokens) % 5)
    return tokens[len(prompt) :]


class CacheMachine(RuleBasedStateMachine):
    """A scheduler with a cache over toy ranks, which check each state that a step starts from."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.numbers = itertools.count()
        self.asked = {}
        self.states = []
        self.texts = []

    @initialize(size=st.sampled_from(list(SIZES)), is_hybrid=st.booleans())
    def start(self, size, is_hybrid):
        options = dict(SIZES[size])
        self.has_disk = options.pop("disk", False)
        page_size = 4 if is_hybrid else 0
        self.sizes = CacheSizes(
            **options,
            state_bytes=10,
            token_bytes=1 if is_hybrid else 0,
            interval=8,
            page_size=page_size,
        )
        self.limits = Limits(3, 12, 99, n_pages=30 if is_hybrid else 0, page_size=page_size)
        self.begin()

    def begin(self):
        disk = DiskIndex(self.folder, 6 * 20_000, "toy", 1) if self.has_disk else None
        self.cache = StateCache(self.sizes, self.limits.n_pages, disk)
        self.scheduler = Scheduler(self.limits, self.cache)
        self.ranks = ToyRanks(self.limits.page_size, self.folder)

    @rule(
        prompts=st.lists(
            st.tuples(st.integers(0, 2), st.integers(1, 25), st.integers(0, 999)),
            min_size=1,
            max_size=5,
        ),
        salt=st.sampled_from(["", "", "other"]),
        n_steps=st.integers(0, 12),
    )
    def traffic(self, prompts, salt, n_steps):
        """Prompts with common beginnings arrive together; some steps run."""
        for head, n_head, tail in prompts:
            prompt = [(head + n * n) % 5 for n in range(n_head)]
            prompt += [tail * n % 5 for n in range(tail % 11)]
            self.put(prompt, 1 + tail % 6, namespace=salt)
        self.step(n_steps)

    def put(self, prompt, n_new, **values):
        params = SamplingParams(max_tokens=n_new, temperature=0, ignore_eos=True)
        request = Request(next(self.numbers), tuple(prompt), params, **values)
        self.scheduler.add(request)
        self.asked[request.id] = request

    @precondition(lambda self: self.texts)
    @rule(number=st.integers(0, 99), n_turns=st.integers(1, 4))
    def chat(self, number, n_turns):
        """Further turns: a finished text and more, each run to its end."""
        for _ in range(n_turns):
            text = self.texts[number % len(self.texts)]
            if len(text) < 60:
                self.put((*text, number % 5, 3), 3)
                self.step(9)

    def step(self, n_steps):
        for _ in range(n_steps):
            plan = self.scheduler.plan()
            if plan is None:
                return
            result = self.ranks.step(plan)
            for part in self.scheduler.commit(result):
                self.check(part)

    def check(self, part):
        request, output = part.sequence.request, part.sequence.output
        assert part.sequence.n_cached < len(request.prompt), "one token runs, for its logits"
        if not request.generate:
            if part.finish_reason:
                self.states.append((request.prompt, part.kept))
                del self.asked[request.id]
            return
        assert output == toy_output(request.prompt, len(output))
        if part.finish_reason:
            self.texts = [*self.texts[-5:], (*request.prompt, *output)]
            del self.asked[request.id]

    @rule(number=st.integers(0, 99))
    def abort(self, number):
        if self.asked:
            key = sorted(self.asked)[number % len(self.asked)]
            assert self.scheduler.finish(key)
            del self.asked[key]

    @rule(n_head=st.integers(2, 25))
    def snapshot(self, n_head):
        tokens = tuple((1 + n * n) % 5 for n in range(n_head))
        kept = self.cache.keep_known("", tokens)
        if kept is not None:
            self.states.append((tokens, kept))
        elif len(self.states) < 4:
            self.put(tokens, 1, generate=False, keep=True)

    @rule(number=st.integers(0, 99), more=st.lists(st.integers(0, 4), min_size=1, max_size=9))
    def resume(self, number, more):
        if self.states:
            tokens, kept = self.states[number % len(self.states)]
            self.put((*tokens, *more), 2, resume=kept)

    @precondition(lambda self: self.states)
    @rule()
    def release(self):
        """Even of a state that requests wait to resume."""
        self.cache.release(self.states.pop()[1])

    @rule()
    def flush(self):
        self.cache.settle(self.ranks.apply(self.cache.take_ops()))

    @precondition(lambda self: self.has_disk)
    @rule()
    def damage_the_disk(self):
        self.ranks.broken = not self.ranks.broken

    @precondition(lambda self: self.has_disk)
    @rule()
    def restart(self):
        self.cache.write_all(1000)
        self.flush()
        self.asked, self.states = {}, []
        self.begin()

    @invariant()
    def accounts_agree(self):
        if not hasattr(self, "cache"):
            return
        tiers_, sizes = self.cache._tiers, self.sizes
        entries = list(entries_of(self.cache))
        for tier in ("device", "host"):
            members = tiers_.members[tier].values()
            assert tiers_.used[tier] == sum(entry.n_bytes for entry in members)
            assert tiers_.used[tier] <= sizes.limit(tier)
            assert all(entry.tier == tier for entry in members)
        assert {id(entry) for entry in entries} == {
            id(entry)
            for entry in (
                *tiers_.members["device"].values(),
                *tiers_.members["host"].values(),
                *tiers_.on_disk.values(),
            )
        }
        running = self.scheduler._running.values()
        assert len(self.scheduler._free_slots) + len(running) == self.limits.n_slots
        holders = [page for entry in entries for page in entry.pages]
        holders += [page for sequence in running for page in sequence.pages]
        pages = self.cache.pages
        assert sum(pages.holders(page) for page in range(pages.n_pages)) == len(holders)
        assert pages.n_free == pages.n_pages - len(set(holders))

    def teardown(self):
        if not hasattr(self, "cache"):
            return
        self.ranks.broken = False
        for _ in range(400):
            if not self.asked:
                break
            self.step(1)
        assert not self.asked, "a request waits for ever"
        for _, kept in self.states:
            self.cache.release(kept)
        self.flush()
        assert set(self.ranks.kept) == {e.id for e in entries_of(self.cache) if e.tier}
        assert all(not entry.pins for entry in entries_of(self.cache))
        for entry in list(entries_of(self.cache)):
            self.cache._tiers.forget(entry)
        self.flush()
        assert self.ranks.kept == {}
        assert self.cache.pages.n_free == self.cache.pages.n_pages
        shutil.rmtree(self.folder)


def entries_of(state_cache):
    """Every entry of the tree; checks the tree's own rules on the way."""
    stack = [(root, True) for root in state_cache._tree._roots.values()]
    while stack:
        node, is_root = stack.pop()
        if node.value is not None:
            assert node.value.node is node
            yield node.value
        assert is_root or node.value is not None or len(node.children) > 1
        for first, child in node.children.items():
            assert child.edge[0] == first
            assert child.parent is node
            assert child.depth == node.depth + len(child.edge)
            stack.append((child, False))


@pytest.mark.parametrize("aborted", [False, True])
def test_a_released_state_stays_for_who_waits_to_resume_it(aborted):
    machine = CacheMachine()
    machine.start(size=next(iter(SIZES)), is_hybrid=True)
    machine.snapshot(10)
    machine.step(20)
    machine.resume(0, [1, 2])
    machine.resume(0, [3])
    machine.release()
    machine.flush()
    assert machine.ranks.kept
    if aborted:
        machine.abort(0)
        machine.abort(0)
    machine.teardown()


@pytest.mark.filterwarnings("ignore:.*state_cache_dir")
def test_nothing_stale_and_no_leak(monkeypatch):
    """With thresholds so low that short prompts stop, share, move and load."""
    monkeypatch.setattr(boundaries, "MIN_SHARED", 2)
    monkeypatch.setattr(boundaries, "TAIL", 4)
    monkeypatch.setattr(boundaries, "SHORT_TAIL_FROM", 6)
    monkeypatch.setattr("sidewinder.engine.scheduler.MIN_SHARED", 2)
    monkeypatch.setattr(tiers, "MIN_MOVED_TOKENS", 2)
    monkeypatch.setattr(cache, "MIN_LOADED_TOKENS", 2)

    machine = settings(max_examples=60, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(CacheMachine, settings=machine)
