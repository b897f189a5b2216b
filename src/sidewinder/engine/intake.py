"""From what callers pass to requests that can run: everything is checked and filled in here."""

import itertools
import random
import warnings
from dataclasses import dataclass
from functools import cached_property

from sidewinder.config import EngineConfig, ModelConfig
from sidewinder.engine.defaults import GenerationDefaults
from sidewinder.engine.inputs import Prompt, check_length, check_tokens, resolve_params
from sidewinder.engine.request import Request
from sidewinder.engine.scheduler import Limits
from sidewinder.sampling import SamplingParams
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
        text = prompt if isinstance(prompt, str) else None
        if text is not None or params.stop:
            self._tokenizer.load()
        request = Request(
            id=next(self._ids),
            prompt=tokens,
            params=params,
            seed=self._seeds.getrandbits(64) if params.seed is None else params.seed,
            eos_token_ids=self._eos_token_ids,
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
