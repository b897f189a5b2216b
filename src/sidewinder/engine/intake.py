"""From what callers pass to requests that can run: everything is checked and filled in here."""

import itertools
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from sidewinder.config import EngineConfig, ModelConfig
from sidewinder.engine.defaults import GenerationDefaults
from sidewinder.engine.inputs import Prompt, check_length, check_tokens, resolve_params
from sidewinder.engine.limits import Limits
from sidewinder.engine.request import Request
from sidewinder.sampling import Constraint, SamplingParams
from sidewinder.sampling.grammar import GrammarCompiler
from sidewinder.sampling.grammar_cache import CompiledGrammar
from sidewinder.state.cache.cache import Kept, namespace_of
from sidewinder.tokenizer import Tokenizer


@dataclass(frozen=True)
class Call:
    """A request, and what its text needs: a tokenizer (None: no text) and the prompt's text."""

    request: Request
    tokenizer: Tokenizer | None = None
    prompt: str | None = None


@dataclass(frozen=True, eq=False)
class ConversationState:
    """A state that a caller keeps: `LLM.snapshot` makes it, `LLM.resume` continues it.

    The ranks hold it in host memory, outside of the cache's budget, until `LLM.release` or `close`.

    Attributes:
        token_ids: the text so far. All but the last one are in the state: that one runs again, for
            its logits.
        kept: what the ranks call it; None for a text of one token, which needs no state.
    """

    token_ids: tuple[int, ...]
    kept: Kept | None


def check_state(state: object) -> None:
    """Raise ValueError unless `state` is a state that a caller keeps."""
    if not isinstance(state, ConversationState):
        raise ValueError(f"{state!r} is no kept state; give what snapshot() returned")


class Intake:
    """Makes requests.

    Args:
        engine: `max_model_len`.
        model: vocabulary.
        defaults: how to draw where requests leave it open, and end-of-text ids.
        tokenizer: for text, loaded when first needed.
        limits: what can ever run.
        seed: of the stream that gives requests without a seed theirs.
    """

    def __init__(
        self,
        engine: EngineConfig,
        model: ModelConfig,
        defaults: GenerationDefaults,
        tokenizer: Tokenizer,
        limits: Limits,
        seed: int,
    ) -> None:
        self._max_model_len = engine.max_model_len
        self._vocab_size = model.vocab_size
        self._defaults = defaults
        self._tokenizer = tokenizer
        self._limits = limits
        self._seeds = random.Random(seed)
        self._ids = itertools.count()

    def generation(
        self,
        prompt: Prompt,
        params: SamplingParams,
        cache_salt: str | None = None,
        resume: ConversationState | None = None,
        priority: int = 0,
        compiles: bool = True,
    ) -> Call:
        """A request to continue `prompt`.

        Args:
            prompt: text or token ids; after those of `resume`, if that is given.
            params: how to continue.
            cache_salt: states of prefixes are shared only among requests with the same one.
            resume: a caller's own state.
            priority: requests with a lower number go first.
            compiles: compile the form that is asked for, now; else it is `constrained` later.

        Raises:
            ValueError: if prompt or params cannot run.
        """
        tokens = self.tokens(prompt) if resume is None else self._continued(resume, prompt)
        params = resolve_params(
            params,
            len(tokens),
            self._defaults.sampling,
            self._vocab_size,
            self._max_model_len,
        )
        params = self._check_endings(params)
        prediction, params = self._prediction(params), replace(params, prediction=None)
        text = prompt if isinstance(prompt, str) else None
        if text is not None or params.stop:
            self._tokenizer.load()
        request = Request(
            id=next(self._ids),
            prompt=tokens,
            params=params,
            seed=self._seeds.getrandbits(64) if params.seed is None else params.seed,
            eos_token_ids=self._eos_token_ids,
            constraint=self._constraint(params) if compiles else None,
            namespace=namespace_of(cache_salt),
            resume=None if resume is None else resume.kept,
            priority=priority,
            prediction=prediction,
        )
        self._limits.check(request)
        tokenizer = self._tokenizer if self._has_tokenizer else None
        return Call(request, tokenizer, text)

    def reading(
        self, prompt: Prompt, return_logits: bool = False, cache_salt: str | None = None
    ) -> Call:
        """A request to run `prompt` and score it, or return its logits.

        All of it runs, whatever is cached: something is wanted of every token.

        Raises:
            ValueError: if the prompt cannot run.
        """
        tokens = self.tokens(prompt)
        check_length(len(tokens), 0, self._max_model_len)
        request = Request(
            id=next(self._ids),
            prompt=tokens,
            params=SamplingParams(prompt_logprobs=None if return_logits else 0),
            generate=False,
            return_logits=return_logits,
            namespace=namespace_of(cache_salt),
        )
        self._limits.check(request)
        return Call(request)

    def keeping(self, tokens: Sequence[int], cache_salt: str | None = None) -> Call:
        """A request to run `tokens` and keep their state for the caller.

        Raises:
            ValueError: if they cannot run.
        """
        checked = check_tokens(tokens, self._vocab_size)
        check_length(len(checked), 0, self._max_model_len)
        namespace = namespace_of(cache_salt)
        request = Request(
            id=next(self._ids),
            prompt=checked,
            params=SamplingParams(),
            generate=False,
            namespace=namespace,
            keep=True,
        )
        self._limits.check(request)
        return Call(request)

    def _continued(self, state: ConversationState, prompt: Prompt) -> tuple[int, ...]:
        check_state(state)
        if isinstance(prompt, str):
            # No BOS in the middle of a text.
            prompt = self._tokenizer.encode(prompt, special=False) if prompt else []
        empty = hasattr(prompt, "__len__") and len(prompt) == 0
        added = () if empty else check_tokens(prompt, self._vocab_size)
        return state.token_ids + added

    def _prediction(self, params: SamplingParams) -> tuple[int, ...]:
        given = params.prediction
        if not given:
            return ()
        if isinstance(given, str):
            given = tuple(self._tokenizer.encode(given, special=False))
        try:
            return check_tokens(given, self._vocab_size)
        except ValueError as error:
            raise ValueError(f"prediction: {error}") from error

    def _check_endings(self, params: SamplingParams) -> SamplingParams:
        if params.structured_output is not None:
            # Its form decides where it ends: then only an end-of-text id is left to draw.
            return replace(params, ignore_eos=False)
        ending = set(params.stop_token_ids)
        if not params.ignore_eos:
            ending |= set(self._eos_token_ids)
        if params.min_tokens and len(ending) >= self._vocab_size:
            raise ValueError(
                f"stop_token_ids: with min_tokens={params.min_tokens} the first token has none "
                "left to be; give fewer stop ids, or no min_tokens"
            )
        return params

    def constrained(self, call: Call, grammar: CompiledGrammar) -> Call:
        """`call`, held to the grammar of its form."""
        request = replace(call.request, constraint=self.grammars.follow(grammar))
        return replace(call, request=request)

    def _constraint(self, params: SamplingParams) -> Constraint | None:
        form = params.structured_output
        return None if form is None else self.grammars.constraint(form)

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Compiles forms."""
        return GrammarCompiler(self._tokenizer, self._vocab_size, self._eos_token_ids)

    def tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """The token ids that `prompt` stands for.

        Raises:
            ValueError: for an empty prompt, or ids outside the vocabulary.
        """
        if not isinstance(prompt, str):
            return check_tokens(prompt, self._vocab_size)
        if not prompt:
            raise ValueError("the prompt is empty; give at least one character")
        return check_tokens(self._tokenizer.encode(prompt), self._vocab_size)

    @cached_property
    def _has_tokenizer(self) -> bool:
        """Whether outputs have text; token ids run without."""
        try:
            self._tokenizer.load()
        except ValueError as error:
            warnings.warn(f"outputs have token ids and no text: {error}", stacklevel=2)
            return False
        return True

    @cached_property
    def _eos_token_ids(self) -> tuple[int, ...]:
        if self._defaults.eos_token_ids or not self._has_tokenizer:
            return self._defaults.eos_token_ids
        token = self._tokenizer.eos_token_id
        return () if token is None else (token,)
