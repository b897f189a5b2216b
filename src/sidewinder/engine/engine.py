"""The engine: requests in, steps over the ranks, increments out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sidewinder.engine.limits import Limits
from sidewinder.engine.outputs import Increment, Metrics, RequestOutput
from sidewinder.engine.pacing import Pacer
from sidewinder.engine.plan import StepResult
from sidewinder.engine.request import FinishReason, Progress, Request
from sidewinder.engine.scheduler import Scheduler
from sidewinder.engine.text import TextStream
from sidewinder.parallel.executor import Executor
from sidewinder.state.cache.cache import StateCache
from sidewinder.state.cache.stats import CacheStats
from sidewinder.tokenizer import Tokenizer

FLUSH_BYTES = 2 << 30
"""Most bytes (of one rank) that `Engine.flush` writes to disk: closing must not take minutes."""


@dataclass
class Counters:
    """Totals since the engine started.

    Attributes:
        steps: steps run, and `step_s` the time they took together.
        prompt_tokens, decode_tokens: tokens run in prefill and in decode.
        cached_tokens: prompt tokens that were not run: their state was kept.
        draft_tokens, accepted_tokens: tokens guessed ahead, and how many were right.
        finished, aborted: requests.
    """

    steps: int = 0
    step_s: float = 0.0
    prompt_tokens: int = 0
    decode_tokens: int = 0
    cached_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    finished: int = 0
    aborted: int = 0


@dataclass
class _Live:
    """A request that is waiting or running: its text so far, what of it no increment had yet, and
    its output to be."""

    request: Request
    text: TextStream
    output: RequestOutput
    unshown: str = ""


class Engine:
    """Runs requests to their end, many at once.

    Args:
        executor: runs `step` on every rank.
        limits: slots, pages and tokens per step.
        cache: kept states; by default none are.
        pacer: protects decodes from prompts; by default prompts fill the steps.
        looks_ahead: ranks start the next step before they answer, where plans say what it is.

    Attributes:
        failed: a step raised: the ranks' state is unknown, so close the executor.
    """

    def __init__(
        self,
        executor: Executor,
        limits: Limits,
        cache: StateCache | None = None,
        pacer: Pacer | None = None,
        looks_ahead: bool = False,
    ) -> None:
        self._executor = executor
        self._scheduler = Scheduler(limits, cache, pacer, looks_ahead, self._read)
        self.cache = self._scheduler.cache
        self._live: dict[int, _Live] = {}
        self.counters = Counters()
        self.failed = False

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._live)

    @property
    def n_running(self) -> int:
        """Requests that hold a slot."""
        return self._scheduler.n_running

    def add(
        self, request: Request, tokenizer: Tokenizer | None = None, prompt: str | None = None
    ) -> None:
        """Put a request in the queue.

        Args:
            request: its id must be new.
            tokenizer: writes its text; None leaves the text empty.
            prompt: the prompt's text, for the output.

        Raises:
            ValueError: if it can never run (KV pages), or resumes a state that is not held.
        """
        assert request.id not in self._live, "request ids are unique"
        metrics = Metrics(time.perf_counter(), prompt_tokens=len(request.prompt))
        output = RequestOutput(request.id, prompt, list(request.prompt), metrics)
        if request.params.logprobs is not None:
            output.logprobs = []
        # A request that only runs its prompt may be huge: its scores are in the increments alone.
        if request.generate and request.params.prompt_logprobs is not None:
            output.prompt_logprobs = [None]
        text = TextStream(tokenizer, request.params, request.prompt)
        self._scheduler.add(request)
        self._live[request.id] = _Live(request, text, output)

    def abort(self, request_id: int) -> bool:
        """Drop a request and free its slot; False if it is already complete or unknown."""
        if self._live.pop(request_id, None) is None:
            return False
        self._scheduler.finish(request_id)
        self.counters.aborted += 1
        return True

    def step(self) -> list[Increment]:
        """Run one step on all ranks; return what it added to each request that took part."""
        plan = self._scheduler.plan()
        if plan is None:
            return []
        started = time.perf_counter()
        self.failed = True  # Unless all of it works.
        result: StepResult = self._executor.call("step", plan)
        ended = time.perf_counter()
        self._scheduler.took(plan, ended - started)
        progress = self._scheduler.commit(result)
        self.failed = False
        if progress:
            self._count(progress, ended - started)
        return [self._take(part, started, ended) for part in progress]

    def check_ranks(self) -> None:
        """Raise RankFailure if a rank has ended or fallen silent; call it between steps, often."""
        self.failed = True  # Unless all of them run.
        self._executor.check()
        self.failed = False

    def flush(self, to_disk: bool = False) -> None:
        """Have the ranks do what is pending for kept states; call it between steps.

        Args:
            to_disk: also write kept states to the disk tier, up to `FLUSH_BYTES` of them, and say
                how many a failing disk did not take; for the end.
        """
        if to_disk:
            self.cache.write_all(FLUSH_BYTES)
        ops = self.cache.take_ops()
        if ops:
            self.failed = True  # Unless all of it works.
            failed: dict[int, str] = self._executor.call("apply", ops)
            self.cache.settle(failed)
            self.failed = False
        if to_disk:
            self.cache.report_unwritten()

    def cache_stats(self) -> CacheStats:
        """Figures of the state cache; any thread may call."""
        return self.cache.stats()

    def run(self) -> list[RequestOutput]:
        """Step until nothing is left; return the outputs in the order in which they finished."""
        outputs = []
        while self.has_work:
            increments = self.step()
            outputs += [part.output for part in increments if part.output is not None]
        return outputs

    def _count(self, progress: Sequence[Progress], elapsed: float) -> None:
        total = sum(part.n_tokens for part in progress)
        in_prompts = sum(
            part.n_tokens for part in progress if part.start < len(part.sequence.request.prompt)
        )
        self.counters.steps += 1
        self.counters.step_s += elapsed
        self.counters.prompt_tokens += in_prompts
        self.counters.decode_tokens += total - in_prompts

    def _take(self, part: Progress, started: float, ended: float) -> Increment:
        live = self._live[part.sequence.request.id]
        output, metrics, result = live.output, live.output.metrics, part.result
        if metrics.scheduled_s is None:
            metrics.scheduled_s = started
            metrics.cached_tokens = part.sequence.n_cached
            self.counters.cached_tokens += part.sequence.n_cached
        increment = Increment(output.request_id, logits=result.logits, scores=result.scores)
        increment.kept = part.kept
        if output.prompt_logprobs is not None:
            n_missing = len(output.prompt_token_ids) - len(output.prompt_logprobs)
            output.prompt_logprobs += result.scores[:n_missing]
        self._count_drafts(metrics, part)
        if result.tokens:
            self._take_tokens(live, increment, part)
            if metrics.first_token_s is None:
                metrics.first_token_s = ended
        reason = part.finish_reason
        if reason is not None:
            metrics.finished_s = ended
            output.finish_reason = increment.finish_reason = reason
            output.stop_string = live.text.stop_string
            increment.output = output
            del self._live[output.request_id]
            self.counters.finished += 1
        return increment

    def _count_drafts(self, metrics: Metrics, part: Progress) -> None:
        n_accepted = max(0, len(part.result.tokens) - 1)
        for counted in (metrics, self.counters):
            counted.draft_tokens += part.n_drafts
            counted.accepted_tokens += n_accepted

    def _read(self, request_id: int, token: int, reason: FinishReason | None) -> bool:
        """Put a token into its text; whether a stop string ends it there."""
        live = self._live[request_id]
        live.unshown += live.text.push(token, reason)
        return live.text.stopped

    def _take_tokens(self, live: _Live, increment: Increment, part: Progress) -> None:
        """Write down what was drawn."""
        output, result = live.output, part.result
        increment.token_ids = result.tokens
        increment.text, live.unshown = live.unshown, ""
        output.token_ids += increment.token_ids
        output.metrics.output_tokens += len(increment.token_ids)
        output.text += increment.text
        if output.logprobs is not None:
            increment.logprobs = result.logprobs
            output.logprobs += result.logprobs
