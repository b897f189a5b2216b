"""What a caller asks of one generation (`SamplingParams`) and what is reported of one token."""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sidewinder.plain import make_plain, plain
from sidewinder.sampling.structured import StructuredOutput

MAX_TOP_LOGPROBS = 128
"""Most alternatives per token that a request may ask for."""

MAX_BIASES = 1024
"""Most tokens whose logits a request may shift."""

MAX_SEED = 2**64 - 1

MIN_TEMPERATURE = 1e-5
"""Temperatures below this count as 0 (greedy)."""


@dataclass(frozen=True)
class SamplingParams:
    """How to continue one prompt.

    A token is drawn in this order: `structured_output` and `min_tokens` mask tokens; `logit_bias`;
    repetition, frequency and presence penalties; temperature; top-k; top-p; min-p (each filter on
    what the one before it left, as in transformers); then one uniform number picks from the
    cumulative distribution.

    Of temperature, top_k, top_p, min_p and repetition_penalty, None is the model's setting (its
    `generation_config.json`'s), which the engine fills in; where that has none, it is 1 for
    temperature, and off for the others. Numbers may be NumPy's.

    Attributes:
        max_tokens: most tokens to generate; None continues to the engine's `max_model_len`.
        min_tokens: no ending (end-of-text id, stop id, stop string) before this many tokens.
        temperature: 0 is greedy (ties go to the lowest id).
        top_k: keep the k most likely tokens (and ties of the last); 0 or -1 keeps all.
        top_p: keep the fewest most likely tokens whose probabilities reach top_p; 1 keeps all.
        min_p: keep tokens at least min_p times as likely as the most likely; 0 keeps all.
        repetition_penalty: divides positive logits and multiplies negative ones of every token in
            prompt or output (Keskar et al. 2019); from 0.01 to 100, 1 is off.
        presence_penalty: subtracted from logits of tokens in the output; 0 is off.
        frequency_penalty: subtracted once for each time a token is in the output; 0 is off.
        logit_bias: {token id: added to its logit, from -100 to 100}; kept as a tuple of pairs.
        structured_output: the form that the text must have.
        seed: of this request's own random stream; None takes one from the engine's stream.
        stop: strings that end the text (a single string counts as one).
        stop_token_ids: ids that end the text.
        ignore_eos: go on past the model's end-of-text ids.
        logprobs: report each output token's logprob and this many of the most likely (0: only its
            own). Logprobs are of the model's distribution, before penalties and temperature.
        prompt_logprobs: the same for prompt tokens; the first has none.
        include_stop_str_in_output: leave the stop string, or the stop id's text, in the text.
        skip_special_tokens: leave special tokens out of the text.
        kept_special_tokens: texts of special tokens that stay in it all the same.
        prediction: what the text may largely say, as text or token ids: a document that is edited,
            say. With `speculate` the text then comes sooner; it stays the same.

    Raises:
        ValueError: for a value out of its range.
    """

    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    structured_output: StructuredOutput | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    kept_special_tokens: tuple[str, ...] = ()
    prediction: str | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _tuple("stop", stop))
        object.__setattr__(self, "stop_token_ids", _tuple("stop_token_ids", self.stop_token_ids))
        kept = _tuple("kept_special_tokens", self.kept_special_tokens)
        object.__setattr__(self, "kept_special_tokens", kept)
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        if self.prediction is not None and not isinstance(self.prediction, str):
            object.__setattr__(self, "prediction", _tuple("prediction", self.prediction))
        self._check_lengths()
        self._check_distribution()
        self._check_biases()
        self._check_endings()
        self._check_form()

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken: a temperature of 0, or too small to divide by."""
        return self.temperature is not None and self.temperature < MIN_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        """Whether drawing needs to know the tokens so far."""
        return self.penalises_repetition or self.counts_output

    @property
    def penalises_repetition(self) -> bool:
        """Whether drawing needs to know which tokens prompt and output have."""
        return self.repetition_penalty not in (None, 1)

    @property
    def counts_output(self) -> bool:
        """Whether drawing needs the number of times that each token was generated."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 1)
        _check_integer("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}; "
                "raise max_tokens or lower min_tokens"
            )
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), 0, MAX_TOP_LOGPROBS)

    def _check_distribution(self) -> None:
        if self.temperature is not None:
            _check_number("temperature", self.temperature, 0)
        if self.top_k is not None:
            _check_integer("top_k", self.top_k, 0)
        if self.top_p is not None:
            _check_number("top_p", self.top_p, 0, 1, open_low=True)
        if self.min_p is not None:
            _check_number("min_p", self.min_p, 0, 1)
        if self.repetition_penalty is not None:
            # Beyond these a penalty overflows float32, or makes all logits equal.
            _check_number("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _check_number("presence_penalty", self.presence_penalty, -2, 2)
        _check_number("frequency_penalty", self.frequency_penalty, -2, 2)
        if self.seed is not None:
            _check_integer("seed", self.seed, -(2**63), MAX_SEED)

    def _check_biases(self) -> None:
        if len(self.logit_bias) > MAX_BIASES:
            raise ValueError(
                f"logit_bias names {len(self.logit_bias)} tokens; use at most {MAX_BIASES}"
            )
        for token, bias in self.logit_bias:
            _check_integer("logit_bias", token, 0)
            _check_number(f"logit_bias[{token}]", bias, -100, 100)

    def _check_form(self) -> None:
        form = self.structured_output
        if form is None:
            return
        if not isinstance(form, StructuredOutput):
            raise ValueError(
                f"structured_output={form!r} is not a StructuredOutput; use StructuredOutput(...)"
            )
        if self.min_tokens:
            raise ValueError(
                f"min_tokens={self.min_tokens} with a structured output: its form decides where "
                "it may end; leave min_tokens out"
            )

    def _check_endings(self) -> None:
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop={text!r} is not a stop string; use non-empty strings")
        for text in self.kept_special_tokens:
            if not isinstance(text, str):
                raise ValueError(f"kept_special_tokens: {text!r} is not a token's text")
        for token in self.stop_token_ids:
            _check_integer("stop_token_ids", token, 0)
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} is not True or False")


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely the model found one token at one position.

    Attributes:
        token_id: the token.
        logprob: its natural-log probability.
        rank: 1 for the most likely token; ties share the better rank.
        top: the most likely (token id, logprob) pairs, best first, as many as were asked for.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


def _tuple(name: str, values: object) -> tuple[object, ...]:
    if not isinstance(values, tuple | list | set | frozenset):
        raise ValueError(f"{name}={values!r} is not a list; give a list of values")
    return tuple(plain(value) for value in values)


def _pairs(biases: object) -> tuple[tuple[int, float], ...]:
    given = biases.items() if isinstance(biases, Mapping) else biases
    pairs = _tuple("logit_bias", list(given)) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"logit_bias={biases!r} is not {{token id: number}}")
    return tuple((plain(pair[0]), plain(pair[1])) for pair in pairs if isinstance(pair, tuple))


def _limits(low: float | None, high: float | None, open_low: bool = False) -> str:
    if low is not None and high is not None:
        return f"above {low} and at most {high}" if open_low else f"from {low} to {high}"
    return f"above {low}" if open_low else f"of {low} or more"


def _check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is not an integer; use a value {_limits(low, high)}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}={value} is out of range; use a value {_limits(low, high)}")


def _check_number(
    name: str, value: object, low: float, high: float | None = None, open_low: bool = False
) -> None:
    limits = _limits(low, high, open_low)
    if isinstance(value, bool) or not isinstance(value, int | float) or _is_endless(value, high):
        raise ValueError(f"{name}={value!r} is not a finite number; use a value {limits}")
    if value < low or (open_low and value == low) or (high is not None and value > high):
        raise ValueError(f"{name}={value} is out of range; use a value {limits}")


def _is_endless(value: float, high: float | None) -> bool:
    """Of integers without `isfinite`, which makes floats of them that may not be."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return high is None and value > sys.float_info.max
