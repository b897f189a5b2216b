"""From what callers pass to requests that can run: everything is checked and filled in here."""

import itertools
import random
import warnings
from dataclasses import dataclass, replace
from functools import cached_property

from sidewinder.config import EngineConfig, ModelConfig
from sidewinder.engine.defaults import GenerationDefaults
from sidewinder.engine.inputs import Prompt, check_length, check_tokens, resolve_params
from sidewinder.engine.request import Request
from sidewinder.engine.scheduler import Limits
from sidewinder.sampling import Constraint, SamplingParams
from sidewinder.sampling.grammar import GrammarCompiler
from sidewinder.tokenizer import Tokenizer


@dataclass(frozen=True)
class Call:
    """A request, and what its text needs: a tokenizer (None: no text) and the prompt's text."""

    request: Request
    tokenizer: Tokenizer | None = None
    prompt: str | None = None


class Intake:
    """Makes requests.

    Args:
        engine: `max_model_len`.
        model: vocabulary.
        defaults: temperature and end-of-text ids where requests leave them open.
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

    def generation(self, prompt: Prompt, params: SamplingParams) -> Call:
        """A request to continue `prompt`.

        Raises:
            ValueError: if prompt or params cannot run.
        """
        tokens = self._tokens(prompt)
        params = resolve_params(
            params,
            len(tokens),
            self._defaults.temperature,
            self._vocab_size,
            self._max_model_len,
        )
        params = self._check_endings(params)
        text = prompt if isinstance(prompt, str) else None
        if text is not None or params.stop:
            self._tokenizer.load()
        request = Request(
            id=next(self._ids),
            prompt=tokens,
            params=params,
            seed=self._seeds.getrandbits(64) if params.seed is None else params.seed,
            eos_token_ids=self._eos_token_ids,
            constraint=self._constraint(params),
        )
        self._limits.check(request)
        tokenizer = self._tokenizer if self._has_tokenizer else None
        return Call(request, tokenizer, text)

    def reading(self, prompt: Prompt, return_logits: bool = False) -> Call:
        """A request to run `prompt` and score it, or return its logits.

        Raises:
            ValueError: if the prompt cannot run.
        """
        tokens = self._tokens(prompt)
        check_length(len(tokens), 0, self._max_model_len)
        request = Request(
            id=next(self._ids),
            prompt=tokens,
            params=SamplingParams(prompt_logprobs=None if return_logits else 0),
            generate=False,
            return_logits=return_logits,
        )
        self._limits.check(request)
        return Call(request)

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

    def _constraint(self, params: SamplingParams) -> Constraint | None:
        form = params.structured_output
        return None if form is None else self._grammars.constraint(form)

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        return GrammarCompiler(self._tokenizer, self._vocab_size, self._eos_token_ids)

    def _tokens(self, prompt: Prompt) -> tuple[int, ...]:
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
