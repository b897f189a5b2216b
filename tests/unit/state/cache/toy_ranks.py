"""Toy ranks that keep states as numbers and keys and values as tokens, and check every plan.

A slot's state is a checksum of the tokens that ran in it, so a stale, foreign or torn state is
found by the first step that uses it.
"""

import json

from sidewinder.engine.plan import SequenceResult, StepResult
from sidewinder.state.cache.ops import Copy, Drop, Read, Restore, Save, ToDevice, ToHost, Write


def state_of(tokens):
    state = 7
    for token in tokens:
        state = (state * 31 + token + 1) % 1_000_003
    return state


class ToyRanks:
    """An executor: `step` and `apply`, as a `Runner` has them."""

    def __init__(self, page_size, folder):
        self.page_size = page_size
        self.folder = folder
        self.slots = {}
        self.kept = {}
        self.page_tokens = {}
        self.broken = False
        self.n_run = 0

    def call(self, method, *args):
        return getattr(self, method)(*args)

    def step(self, plan):
        failed = self.apply(plan.state_ops)
        return StepResult([self._run(part) for part in plan.sequences], failed)

    def apply(self, ops):
        failed = {}
        for op in ops:
            try:
                self._do(op)
            except OSError as error:
                failed[op.snapshot] = str(error)
        return failed

    def _run(self, part):
        state = state_of(()) if part.start == 0 else self.slots[part.slot]
        text = self._text(part.pages, part.start)
        if self.page_size:
            assert state == state_of(text), "slot and pages hold one text"
        for offset, token in enumerate(part.tokens):
            state = (state * 31 + token + 1) % 1_000_003
            if self.page_size:
                position = part.start + offset
                page = part.pages[position // self.page_size]
                self.page_tokens[page, position % self.page_size] = token
        self.slots[part.slot] = state
        self.n_run += len(part.tokens)
        return SequenceResult(tokens=[state % 5] if part.sample else [])

    def _text(self, pages, n_tokens):
        if not self.page_size:
            return None
        places = [(pages[n // self.page_size], n % self.page_size) for n in range(n_tokens)]
        return [self.page_tokens[place] for place in places]

    def _do(self, op):
        match op:
            case Save():
                assert op.snapshot not in self.kept
                self.kept[op.snapshot] = {"state": self.slots[op.slot]}
            case Drop():
                del self.kept[op.snapshot]
            case Copy():
                assert op.snapshot not in self.kept
                self.kept[op.snapshot] = self.kept[op.source]
            case ToHost():
                self.kept[op.snapshot] = self._whole(op)
            case ToDevice():
                self.kept[op.snapshot] = {"state": self.kept[op.snapshot]["state"]}
            case Restore():
                self._restore(op)
            case Write():
                self._check_disk()
                self._file(op).write_text(json.dumps(self._whole(op)))
            case Read():
                assert op.snapshot not in self.kept
                self._check_disk()
                self.kept[op.snapshot] = json.loads(self._file(op).read_text())

    def _restore(self, op):
        kept = self.kept[op.snapshot]
        self.slots[op.slot] = kept["state"]
        if op.pages:
            for position, token in enumerate(kept["text"]):
                place = op.pages[position // self.page_size], position % self.page_size
                self.page_tokens[place] = token
        if op.copied is not None:
            source, target = op.copied
            for offset in range(self.page_size):
                if (source, offset) in self.page_tokens:
                    self.page_tokens[target, offset] = self.page_tokens[source, offset]

    def _whole(self, op):
        kept = self.kept[op.snapshot]
        if not op.pages:
            return kept
        whole = {"state": kept["state"], "text": self._text(op.pages, op.n_tokens)}
        assert state_of(whole["text"]) == whole["state"]
        return whole

    def _check_disk(self):
        if self.broken:
            raise OSError("the toy's disk is broken")

    def _file(self, op):
        return self.folder / f"{op.key}.0-of-1.safetensors"
