"""Which sequences run how many tokens in each step. Plain Python: no tensors here.

A recurrent state is constant in size, so a sequence is admitted when a slot is free and then never
waits for memory. Hybrids also reserve, at admission, the KV pages of their longest possible text.

Where drafts are wanted (`engine.drafts`), a decoding sequence also runs what it may say next, as
far as slots are free: each draft leaves its state in one, and that of the last accepted one becomes
the sequence's own.

A prompt resumes the longest kept state of its beginning (`state.cache`). While another prompt is
computing a longer common beginning, it waits for that.
"""

from collections import deque
from collections.abc import Callable

from sidewinder.engine.choosing import chunks, decodes
from sidewinder.engine.drafts import Drafter, room_for_drafts
from sidewinder.engine.limits import Limits
from sidewinder.engine.pacing import Pacer
from sidewinder.engine.plan import SequenceResult, SequenceStep, StepPlan, StepResult
from sidewinder.engine.request import FinishReason, Progress, Request, Sequence
from sidewinder.state.cache.boundaries import MIN_SHARED
from sidewinder.state.cache.cache import Match, StateCache
from sidewinder.state.cache.radix import common_prefix


class Scheduler:
    """Queue, slots and steps: `add`, then `plan`, run, `commit` until nothing is left.

    A step takes one token of every decoding sequence first, then chunks of prompts in the order of
    priority and arrival. While several prompts want to run, each takes at most half of the tokens
    that are left, so that a long prompt does not keep short ones waiting.

    Args:
        limits: what may be given away.
        cache: kept states, and the KV pages; by default nothing is kept.
        pacer: limits the prompt tokens of steps that also decode; by default they fill the step.
        looks_ahead: plans may say what follows, for ranks that start it before they answer.
        read: is told each token as it is taken, with its request's id and why it is the last; says
            whether the text ends with it (stop strings). By default no text is read.
    """

    def __init__(
        self,
        limits: Limits,
        cache: StateCache | None = None,
        pacer: Pacer | None = None,
        looks_ahead: bool = False,
        read: Callable[[int, int, FinishReason | None], bool] = lambda *_: False,
    ) -> None:
        self.limits = limits
        self._looks_ahead = looks_ahead
        self._read = read
        self._pacer = pacer
        self.cache = cache or StateCache(n_pages=limits.n_pages)
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Sequence] = {}
        self._free_slots = list(reversed(range(limits.n_slots + limits.n_draft_slots)))
        self._planned: list[tuple[Sequence, SequenceStep]] = []
        self._ahead: list[tuple[Sequence, SequenceStep]] = []
        self._started: list[tuple[Sequence, SequenceStep]] = []

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        return len(self._running)

    def add(self, request: Request) -> None:
        """Put a request in the queue.

        Raises:
            ValueError: if it can never run, or resumes a state that is not held.
        """
        self.limits.check(request)
        if request.resume is not None:
            self.cache.await_kept(request.resume)
        place = len(self._waiting)
        while place and self._waiting[place - 1].priority > request.priority:
            place -= 1
        self._waiting.insert(place, request)

    def finish(self, request_id: int) -> bool:
        """End a request now, waiting or running, and free its slot; False if it is not here."""
        sequence = self._running.pop(request_id, None)
        if sequence is not None:
            if not sequence.prefilling:
                self._save(sequence)
            self._free_slots.append(sequence.slot)
            self.cache.pages.release(sequence.pages)
            return True
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                if request.resume is not None:
                    self.cache.forgo_kept(request.resume)
                return True
        return False

    def plan(self) -> StepPlan | None:
        """Choose the next step, admitting what fits; None if there is nothing to do."""
        assert not self._planned, "the planned step was not committed"
        if self._started:
            return self._plan_started()
        admitted = self._admit()
        chosen = self._choose()
        if not chosen and not self._waiting:
            return None
        ops = self.cache.take_ops()
        if not chosen and not ops:
            return None
        # Single tokens first: operators have a fast path for them.
        chosen.sort(key=lambda part: not part[1].is_single)
        self._planned = chosen
        drawing = [sequence for sequence in admitted if sequence.request.generate]
        admissions = tuple(sequence.admission() for sequence in drawing)
        return StepPlan(_steps(chosen), admissions, ops, ahead=self._look_ahead())

    def _plan_started(self) -> StepPlan:
        """The step that the ranks have started already: its results, and what follows."""
        self._planned, self._started = self._started, []
        ops = self.cache.take_ops()
        return StepPlan(
            _steps(self._planned), state_ops=ops, ahead=self._look_ahead(), started=True
        )

    def _look_ahead(self) -> tuple[SequenceStep, ...]:
        """The step after the planned one, if that can be said now; sequences may yet turn out to
        end with the planned one, and what more they run is then forgotten. Where a text has drafts
        now, it may have some then, which depend on the token that the planned step draws."""
        alive = [(sequence, step) for sequence, step in self._planned if self._runs(sequence)]
        alone = all(sequence.draws_alone for sequence, _ in alive)
        if not self._looks_ahead or self._waiting or not alone or len(alive) < len(self._running):
            return ()
        if self._free_slots and room_for_drafts(len(alive)) and any(map(_drafts, alive)):
            return ()
        following = [
            (sequence, sequence.step_after(step, self.limits.page_size)) for sequence, step in alive
        ]
        self._ahead = [(sequence, step) for sequence, step in following if step is not None]
        return _steps(self._ahead)

    def _runs(self, sequence: Sequence) -> bool:
        return self._running.get(sequence.request.id) is sequence

    def commit(self, result: StepResult) -> list[Progress]:
        """Take the results of the planned step, in its order; free what is complete. Sequences that
        ended while it ran have none."""
        planned, self._planned = self._planned, []
        self._started, self._ahead = self._ahead if result.ahead else [], []
        for sequence, _ in planned:
            sequence.n_ahead = 0
        for sequence, _ in self._started:
            sequence.n_ahead = 1
        self.cache.settle(result.failed)
        return [
            self._advance(sequence, step, part)
            for (sequence, step), part in zip(planned, result.sequences, strict=True)
            if self._runs(sequence)
        ]

    def took(self, plan: StepPlan, seconds: float) -> None:
        """The planned step, not yet committed, took so long."""
        if self._pacer is not None:
            prompts = [step for sequence, step in self._planned if sequence.prefilling]
            n_decodes = len(plan.sequences) - len(prompts)
            self._pacer.took(n_decodes, sum(len(step.tokens) for step in prompts), seconds)

    def _admit(self) -> list[Sequence]:
        admitted, passed = [], list[Request]()
        # Those who wait for a state may be passed by others, a few at a time.
        while (
            self._waiting
            and len(self._running) < self.limits.n_slots
            and len(passed) < self.limits.n_slots
        ):
            request = self._waiting.popleft()
            match = self._match(request)
            if match is None:
                passed.append(request)
                continue
            sequence = self._start(request, match)
            if sequence is None:
                passed.append(request)
                break
            admitted.append(sequence)
        self._waiting.extendleft(reversed(passed))
        return admitted

    def _match(self, request: Request) -> Match | None:
        """What is kept of the prompt; None if it is better to wait for more."""
        if request.reads_all or request.resume is not None:
            return Match(None, 0)
        match = self.cache.match(request.namespace, request.prompt)
        if self._is_under_way(request, match.n_tokens):
            return None
        if match.entry is not None and not self.cache.ready(match.entry):
            if match.entry.loading:
                return None
            return self.cache.match(request.namespace, request.prompt, in_memory=True)
        return match

    def _is_under_way(self, request: Request, n_known: int) -> bool:
        """Whether a running prompt is computing a longer common beginning; asks it to keep it."""
        for other in self._running.values() if self.cache.enabled else ():
            if not other.prefilling or not other.boundaries:
                continue
            if other.request.namespace != request.namespace:
                continue
            shared = common_prefix(request.prompt, other.request.prompt)
            shared = min(shared, len(request.prompt) - 1)
            if shared - n_known >= MIN_SHARED and shared > other.n_stored:
                other.boundaries.add(shared)
                return True
        return False

    def _start(self, request: Request, match: Match) -> Sequence | None:
        """Give a request slot and pages, with what is kept of its prompt; None if pages lack."""
        pages = self.cache.take_pages(match.entry, self.limits.pages_for(request))
        if pages is None:
            return None
        sequence = Sequence(request, self._free_slots.pop(), pages)
        if match.entry is not None:
            sequence.n_stored = match.n_tokens
            self.cache.resume(match.entry, sequence.slot, pages)
        elif request.resume is not None:
            sequence.n_stored = request.resume.n_tokens
            self.cache.resume_kept(request.resume, sequence.slot, pages)
        sequence.n_cached = sequence.n_stored
        if request.generate and self.limits.max_drafts:
            sequence.drafter = Drafter(request.prompt, request.prediction)
        if request.generate or not request.reads_all:
            sequence.boundaries = self.cache.boundaries(match, len(request.prompt))
        if not request.reads_all and request.resume is None:
            self.cache.count_query(len(request.prompt), sequence.n_cached)
        self._running[request.id] = sequence
        return sequence

    def _choose(self) -> list[tuple[Sequence, SequenceStep]]:
        running, limits = list(self._running.values()), self.limits
        prefilling = [sequence for sequence in running if sequence.prefilling]
        prefilling.sort(key=lambda sequence: sequence.request.priority)
        decoding = [sequence for sequence in running if not sequence.prefilling]
        # Whoever was admitted has its slot by now: what is free stays free until the commit.
        chosen = decodes(decoding, self._free_slots, limits, beside_prompts=bool(prefilling))
        tokens_left = limits.max_step_tokens - sum(len(step.tokens) for _, step in chosen)
        if chosen and self._pacer is not None:
            tokens_left = min(tokens_left, self._pacer.prompt_tokens())
        return chosen + chunks(prefilling, tokens_left, limits)

    def _advance(self, sequence: Sequence, step: SequenceStep, result: SequenceResult) -> Progress:
        sequence.n_stored += len(step.tokens) - len(step.drafts)
        reason = self._take(sequence, step, result)
        if sequence.n_stored in sequence.boundaries:
            self._save(sequence)
        kept = None
        if reason is not None:
            if sequence.request.keep:
                kept = self.cache.keep_slot(sequence.slot, sequence.n_stored, sequence.pages)
            self.finish(sequence.request.id)
        n_tokens, n_drafts = sequence.n_stored - step.start, len(step.drafts)
        return Progress(sequence, step.start, n_tokens, n_drafts, result, reason, kept)

    def _take(
        self, sequence: Sequence, step: SequenceStep, result: SequenceResult
    ) -> FinishReason | None:
        """Take the tokens that were drawn, up to its last one, and the state behind them."""
        reason = sequence.finish_reason() if not result.tokens else None
        for n_accepted, token in enumerate(result.tokens):
            sequence.take(token)
            reason = sequence.finish_reason()
            if self._read(sequence.request.id, token, reason):
                reason = "stop"
            if reason is not None:
                del result.tokens[n_accepted + 1 :], result.logprobs[n_accepted + 1 :]
                break
        n_accepted = max(0, len(result.tokens) - 1)
        if n_accepted:
            sequence.n_stored += n_accepted
            self._free_slots.append(sequence.slot)
            sequence.slot = step.slots[n_accepted]
            self._free_slots.remove(sequence.slot)
        return reason

    def _save(self, sequence: Sequence) -> None:
        if sequence.boundaries:
            tokens = sequence.stored_tokens
            self.cache.save(sequence.request.namespace, tokens, sequence.slot, sequence.pages)


def _drafts(part: tuple[Sequence, SequenceStep]) -> bool:
    """Whether a sequence has drafts in a step, or would have some behind what is known of it."""
    sequence, step = part
    return bool(step.drafts) or sequence.has_drafts


def _steps(parts: list[tuple[Sequence, SequenceStep]]) -> tuple[SequenceStep, ...]:
    return tuple(step for _, step in parts)
