"""`LLM`: the offline interface."""

import math
import secrets
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from tqdm import tqdm

from sidewinder.checkpoint.hub import resolve_model
from sidewinder.config import engine_config, load_model_config
from sidewinder.engine.defaults import generation_defaults
from sidewinder.engine.dispatch import Dispatcher
from sidewinder.engine.engine import Counters, Engine
from sidewinder.engine.inputs import Prompt, params_list, prompt_list
from sidewinder.engine.intake import Call, ConversationState, Intake, check_state
from sidewinder.engine.outputs import Increment, Metrics, RequestOutput, Score
from sidewinder.engine.pacing import Pacer
from sidewinder.engine.reading import join_logits, join_logprobs
from sidewinder.engine.report import RunnerReport
from sidewinder.engine.sizing import check_early, limits_of, open_state_cache
from sidewinder.parallel.executor import Executor
from sidewinder.parallel.launch import start_executor
from sidewinder.sampling import SamplingParams
from sidewinder.sharding.dims import check_tp
from sidewinder.state.cache.cache import namespace_of
from sidewinder.state.cache.stats import CacheStats
from sidewinder.tokenizer import Tokenizer

__all__ = ["LLM", "ConversationState", "Increment", "Metrics", "RequestOutput", "Score"]


class LLM:
    """A model, loaded on `tp` ranks and ready to generate.

    Use it as a context manager, or call `close`: it owns the ranks' processes. Calls and streams
    may interleave; they share steps. Under `launch="torchrun"` every rank makes the same calls in
    the same order and gets the same outputs.

    Args:
        model: folder with `config.json` and weights, a GGUF file, or a Hugging Face hub id.
        options: see `sidewinder.config.EngineConfig` and docs/generation.md.

    Attributes:
        engine, intake, runner_report: for a server, which makes requests with `intake` and steps
            `engine` itself; the calls below must not be made then. The report is of the start.

    Raises:
        ValueError: for an option, model, or checkpoint that cannot be used.
        RuntimeError: if a rank fails while it starts; then none is left.
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        config = engine_config(model=model, **options)
        named_tokenizer = check_early(config)
        folder = resolve_model(config.model, config.revision, config.load_format != "random")
        self.model_config = load_model_config(folder)
        check_tp(self.model_config, config.tp)
        self.config = replace(config, model=str(folder))
        self.tokenizer = named_tokenizer or Tokenizer(str(folder))
        samples = config.generation_config == "auto"
        defaults = generation_defaults(folder, self.model_config, samples)
        self._threads = torch.get_num_threads()
        self._executor = self._start()
        self.runner_report: RunnerReport = self._executor.call("report")
        sizes = self.config, self.model_config, self.runner_report
        limits = limits_of(*sizes)
        cache = open_state_cache(*sizes, self._executor)
        pacer = Pacer() if config.scheduling == "latency" else None
        looks_ahead = self.runner_report.looks_ahead
        self.engine = Engine(self._executor, limits, cache, pacer, looks_ahead)
        self._dispatcher = Dispatcher(self.engine)
        drawn = secrets.randbits(63) if config.seed is None else config.seed
        self.intake = Intake(
            self.config,
            self.model_config,
            defaults,
            self.tokenizer,
            limits,
            seed=self._executor.call("agree", drawn),
        )

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: bool = False,
        cache_salt: str | None = None,
    ) -> list[RequestOutput]:
        """Continue prompts; all run together, in the order of the list.

        Args:
            prompts: one prompt (text or token ids), or a list of them.
            params: one for all, or one per prompt.
            progress: show a progress bar on standard error.
            cache_salt: states of prefixes are shared only among requests with the same one.

        Raises:
            ValueError: for prompts or params that cannot run; nothing has run then.
        """
        items = prompt_list(prompts)
        pairs = zip(items, params_list(params, len(items)), strict=True)
        calls = [self.intake.generation(prompt, own, cache_salt) for prompt, own in pairs]
        outputs = {}
        with tqdm(total=len(calls), desc="prompts", disable=not progress) as bar:
            for part in self._increments(calls):
                if part.output is not None:
                    outputs[part.request_id] = part.output
                    bar.update()
        return [outputs[call.request.id] for call in calls]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        cache_salt: str | None = None,
    ) -> Generator[Increment, None, None]:
        """Continue one prompt; yield what each token adds. The last one carries the whole output.

        Closing the generator, or dropping it, ends the request.

        Raises:
            ValueError: for a prompt or params that cannot run.
        """
        (own,) = params_list(params, 1)
        return self._stream(self.intake.generation(prompt, own, cache_salt))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        cache_salt: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        template_options: Mapping[str, Any] | None = None,
    ) -> RequestOutput:
        """Answer a conversation of {"role": ..., "content": ...} through the chat template.

        Args:
            messages: as OpenAI's clients have them, and whatever else the template reads.
            params: how to continue.
            cache_salt: states of prefixes are shared only among requests with the same one.
            tools: functions that the model is shown, in OpenAI's form; `sidewinder.chat` reads the
                calls in its answer.
            template_options: further variables of the template.
        """
        prompt = self.chat_prompt(messages, tools, template_options)
        (output,) = self.generate([prompt], params, cache_salt=cache_salt)
        return output

    def snapshot(
        self, text: Prompt | RequestOutput, cache_salt: str | None = None
    ) -> ConversationState:
        """Keep the state of a text, to continue it with `resume` as often as wanted.

        What the state cache has of it need not run: after `generate`, its output costs a copy.

        Args:
            text: a prompt, or an output: its prompt and new tokens.
            cache_salt: of the requests that ran it.

        Raises:
            ValueError: for a text that cannot run.
        """
        if isinstance(text, RequestOutput):
            text = text.prompt_token_ids + text.token_ids
        tokens = self.intake.tokens(text)
        if len(tokens) == 1:
            return ConversationState(tokens, None)
        namespace = namespace_of(cache_salt)
        kept = self._dispatcher.with_cache(lambda own: own.keep_known(namespace, tokens[:-1]))
        if kept is None:
            call = self.intake.keeping(tokens[:-1], cache_salt)
            (kept,) = [part.kept for part in self._increments([call]) if part.kept is not None]
        return ConversationState(tokens, kept)

    def resume(
        self,
        state: ConversationState,
        prompt: Prompt = "",
        params: SamplingParams | None = None,
        cache_salt: str | None = None,
    ) -> RequestOutput:
        """Continue a text whose state was kept.

        Args:
            state: from `snapshot`; it stays as it is.
            prompt: what comes after it, without BOS; nothing is needed. Text is encoded by itself:
                where it would merge with the last token before, it now does not.
            params: how to continue.
            cache_salt: states of prefixes are shared only among requests with the same one.

        Raises:
            ValueError: for a prompt or params that cannot run, or a state that is not held.
        """
        (own,) = params_list(params, 1)
        call = self.intake.generation(prompt, own, cache_salt, state)
        *_, last = self._increments([call])
        assert last.output is not None
        return last.output

    def release(self, state: ConversationState) -> None:
        """Free the memory of a kept state, once requests that wait to resume it have begun.

        Raises:
            ValueError: for one that was released already, or is another LLM's.
        """
        check_state(state)
        kept = state.kept
        if kept is not None:
            self._dispatcher.with_cache(lambda own: own.release(kept))

    def cache_stats(self) -> CacheStats:
        """Figures of the state cache."""
        return self.engine.cache_stats()

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        template_options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids that `chat` continues."""
        return self.tokenizer.chat(messages, tools, template_options)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with BOS where the tokenizer is configured to put one."""
        return self.tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The exact text of token ids."""
        return self.tokenizer.decode(token_ids, skip_special_tokens)

    def logits(self, prompts: Prompt | Sequence[Prompt]) -> list[Tensor]:
        """Float32 CPU logits `[len, vocab_size]` of every prompt: row t predicts token t+1."""
        calls = [self.intake.reading(prompt, True) for prompt in prompt_list(prompts)]
        return join_logits(calls, self._increments(calls), self.model_config.vocab_size)

    def stream_logits(self, prompt: Prompt) -> Generator[Tensor, None, None]:
        """The rows of `logits([prompt])`, in blocks as they are made: memory does not grow."""
        with closing(self._increments([self.intake.reading(prompt, True)])) as increments:
            for part in increments:
                if part.logits is not None:
                    yield torch.from_numpy(part.logits)

    def score(self, prompts: Prompt | Sequence[Prompt]) -> list[Tensor]:
        """Float32 CPU logprobs `[len - 1]` of every prompt's tokens after the first."""
        calls = [self.intake.reading(prompt) for prompt in prompt_list(prompts)]
        return join_logprobs(calls, self._increments(calls))

    def perplexity(self, prompt: Prompt, progress: bool = False) -> Score:
        """Score one text of any length, in chunks with carried state and constant memory.

        Raises:
            ValueError: for fewer than two tokens: there is nothing to predict.
        """
        call = self.intake.reading(prompt)
        n_tokens = len(call.request.prompt)
        if n_tokens < 2:
            raise ValueError("one token predicts nothing; give a text of at least two tokens")
        total = 0.0
        with tqdm(total=n_tokens, desc="tokens", unit="", disable=not progress) as bar:
            for part in self._increments([call]):
                total += math.fsum(own.logprob for own in part.scores if own is not None)
                bar.update(len(part.scores))
        return Score(total, n_tokens - 1)

    def report(self) -> dict[str, Any]:
        """What the ranks hold and how they talk; bytes are those of the largest rank."""
        self._dispatcher.check_open()
        report: RunnerReport = self._executor.call("report")
        return report.summary()

    @property
    def counters(self) -> Counters:
        """Steps and tokens since the start."""
        return self.engine.counters

    def close(self) -> None:
        """End the ranks and free their memory; states go to disk first. Calling twice is fine."""
        is_open = self._dispatcher.closed is None and not self.engine.failed
        if is_open and self.config.state_cache_dir is not None:
            try:
                self.engine.flush(to_disk=True)
            except RuntimeError as error:
                warnings.warn(f"kept states were not written: {error}", stacklevel=2)
        self._dispatcher.closed = self._dispatcher.closed or "close() was called"
        self._executor.close()
        torch.set_num_threads(self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> Executor:
        try:
            return start_executor(self.config, self.model_config)
        except BaseException:
            torch.set_num_threads(self._threads)
            raise

    def _stream(self, call: Call) -> Generator[Increment, None, None]:
        with closing(self._increments([call])) as increments:
            yield from (part for part in increments if part.token_ids)

    def _increments(self, calls: Sequence[Call]) -> Generator[Increment, None, None]:
        try:
            yield from self._dispatcher.increments(calls)
        finally:
            if self._dispatcher.closed is not None:
                self.close()
