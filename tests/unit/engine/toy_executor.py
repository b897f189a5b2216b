"""An executor without ranks or tensors: a toy recurrent model that checks what it is asked."""

from sidewinder.engine.packing import n_accepted
from sidewinder.engine.plan import PENDING, SequenceResult, StepResult
from sidewinder.sampling import TokenLogprobs

VOCAB = 50


def next_state(state, token):
    return (state * 31 + token + 1) % 9973


def toy_output(prompt, n_tokens):
    """What the toy model generates, from a plain loop."""
    state = 0
    for token in prompt:
        state = next_state(state, token)
    output = []
    for _ in range(n_tokens):
        output.append(state % VOCAB)
        state = next_state(state, output[-1])
    return output


def toy_score(token):
    return TokenLogprobs(token, -token / 10, 1)


class ToyExecutor:
    """Keeps a state and a token count per slot; asserts the contract of `StepPlan`."""

    def __init__(self, limits):
        self.limits = limits
        self.slots = {}
        self.admitted = {}
        self.plans = []
        self.closed = False

    def call(self, method, *args):
        return getattr(self, method)(*args)

    def check(self):
        pass

    def close(self):
        self.closed = True

    def step(self, plan):
        self.plans.append(plan)
        for admission in plan.admissions:
            self.admitted[admission.slot] = admission
        self._check(plan)
        return StepResult([self._run(part) for part in plan.sequences])

    def _check(self, plan):
        lengths = [len(part.tokens) for part in plan.sequences]
        slots = [slot for part in plan.sequences for slot in part.slots]
        assert lengths, "an empty step"
        assert sum(lengths) <= self.limits.max_step_tokens
        assert len(set(slots)) == len(slots)
        n_slots = self.limits.n_slots + self.limits.n_draft_slots
        assert all(0 <= slot < n_slots for slot in slots)
        singles = [part.is_single for part in plan.sequences]
        assert singles == sorted(singles, reverse=True), "single tokens come first"
        rows = sum(len(part.tokens) for part in plan.sequences if part.return_logits)
        assert rows <= self.limits.max_logit_rows

    def _run(self, part):
        state, n_stored = (0, 0) if part.start == 0 else self.slots[part.slot]
        assert n_stored == part.start, "tokens run once each, in order"
        rows = []
        n_own = len(part.tokens) - len(part.drafts)
        for place, token in enumerate(part.tokens, start=1):
            assert 0 <= token < VOCAB
            state = next_state(state, token)
            rows.append(state % VOCAB)
            self.slots[part.slots[max(0, place - n_own)]] = (state, n_stored + place)
        n_stored += len(part.tokens)
        if self.limits.page_size:
            assert len(part.pages) == -(-n_stored // self.limits.page_size)
        result = SequenceResult()
        result.scores = [None if token == -1 else toy_score(token) for token in part.score]
        if part.return_logits:
            result.logits = rows
        if part.sample:
            admission = self.admitted[part.slot]
            drawn = rows[-len(part.slots) :]
            result.tokens = drawn[: 1 + n_accepted(part.drafts, drawn)]
            self.admitted[part.slots[len(result.tokens) - 1]] = admission
            if admission.params.logprobs is not None:
                result.logprobs = [toy_score(token) for token in result.tokens]
        return result


class AheadExecutor(ToyExecutor):
    """Starts what a plan says is ahead, and gives its results with the next plan."""

    def __init__(self, limits):
        super().__init__(limits)
        self.started = None
        self.last = {}
        self.n_started = 0

    def step(self, plan):
        if plan.started:
            results = self.started
            assert len(results.sequences) == len(plan.sequences)
        else:
            assert self.started is None, "what was started is collected first"
            assert not any(PENDING in part.tokens for part in plan.sequences)
            results = super().step(plan)
        self.started = None
        self._note(plan.sequences, results)
        if plan.ahead:
            parts = [self._known(part) for part in plan.ahead]
            self.n_started += 1
            self.started = type(results)([self._run(part) for part in parts])
            results.ahead = True
        return results

    def _known(self, part):
        assert part.tokens == (PENDING,)
        return type(part)(part.slot, (self.last[part.slot],), part.start, part.pages, sample=True)

    def _note(self, parts, results):
        for part, result in zip(parts, results.sequences, strict=True):
            if result.tokens:
                self.last[part.slots[len(result.tokens) - 1]] = result.tokens[-1]
