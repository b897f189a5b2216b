"""From the body of a request to prompts and `SamplingParams`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from sidewinder.chat import Conversation
from sidewinder.engine.inputs import Prompt
from sidewinder.sampling import SamplingParams
from sidewinder.sampling.params import MAX_SEED
from sidewinder.server.conversation import conversation
from sidewinder.server.errors import ApiError
from sidewinder.server.schemas import (
    ChatRequest,
    CompletionRequest,
    Sampling,
    StreamOptions,
)
from sidewinder.server.structured import structured_output

DEFAULT_COMPLETION_TOKENS = 16
"""Length of a completion whose request names none: OpenAI's default."""


@dataclass(frozen=True)
class Generation:
    """What one request asks for, checked.

    Attributes:
        prompts: texts or token ids, or conversations for the chat template.
        params: of the first choice of every prompt.
        n: choices per prompt.
        generate: False if no token is wanted (`max_tokens` 0).
        echo: put the prompt in front of the text.
        report_prompt: list `prompt_logprobs` in the reply.
        stream, include_usage: how to answer.
        continuous_usage: usage so far in every event, where `include_usage` asks for it at all.
        cache_salt: states of prefixes are shared only among requests with the same one.
        priority: requests with a lower number go first.
        fits: a text ends where `max_model_len` does, instead of being refused.
    """

    prompts: Sequence[Prompt | Conversation]
    params: SamplingParams
    n: int
    generate: bool = True
    echo: bool = False
    report_prompt: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    cache_salt: str | None = None
    priority: int = 0
    fits: bool = False

    @property
    def n_choices(self) -> int:
        """Texts that the reply will hold."""
        return len(self.prompts) * self.n

    def params_of(self, choice: int) -> SamplingParams:
        """Params of choice number `choice` of a prompt: seeds count up from the request's."""
        if self.params.seed is None or choice == 0:
            return self.params
        return replace(self.params, seed=self.params.seed + choice)


def completion(body: CompletionRequest) -> Generation:
    """What a completion asks for.

    Raises:
        ApiError: for a field that is out of its range or not supported.
    """
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(400, "best_of is not supported; use n", "best_of")
    if body.suffix:
        raise ApiError(400, "suffix is not supported; leave it out", "suffix")
    max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    prompt_logprobs = body.prompt_logprobs
    if body.echo and prompt_logprobs is None:
        prompt_logprobs = body.logprobs
    generate = max_tokens != 0
    params = _params(body, max_tokens if generate else 1, body.logprobs, prompt_logprobs)
    return _generation(body, body.prompt, params, generate, bool(body.echo))


def chat(body: ChatRequest, default_max_tokens: int | None) -> Generation:
    """What a chat asks for; `default_max_tokens` None continues to `max_model_len`.

    Raises:
        ApiError: for a field that is out of its range or not supported.
    """
    asked = [body.max_completion_tokens, body.max_tokens]
    max_tokens = next((value for value in asked if value is not None), default_max_tokens)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = _params(body, max_tokens, logprobs, body.prompt_logprobs)
    return _generation(body, [conversation(body)], params)


def _generation(
    body: Sampling,
    prompts: Sequence[Prompt | Conversation],
    params: SamplingParams,
    generate: bool = True,
    echo: bool = False,
) -> Generation:
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise ApiError(400, "prompt_logprobs cannot be streamed", "prompt_logprobs")
    most = MAX_SEED + 1 - (body.n or 1)  # Seeds count up from the first choice's.
    if params.seed is not None and params.seed > most:
        raise ApiError(400, f"seed={params.seed} with n={body.n}: use at most {most}", "seed")
    streaming = body.stream_options or StreamOptions()
    return Generation(
        prompts=prompts,
        params=params,
        n=body.n or 1,
        generate=generate,
        echo=echo,
        report_prompt=body.prompt_logprobs is not None,
        stream=bool(body.stream),
        include_usage=streaming.include_usage,
        continuous_usage=streaming.include_usage and streaming.continuous_usage_stats,
        cache_salt=body.cache_salt,
        priority=body.priority or 0,
    )


_SAME_NAME = {field.name for field in fields(SamplingParams)} & set(Sampling.model_fields)


def _params(
    body: Sampling, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None
) -> SamplingParams:
    given = {name: value for name in _SAME_NAME if (value := getattr(body, name)) is not None}
    given |= {
        "max_tokens": max_tokens,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
    }
    given["prediction"] = None if body.prediction is None else body.prediction.content
    given["logit_bias"] = _biases(body.logit_bias or {})
    try:
        return SamplingParams(**given, structured_output=structured_output(body))
    except ValueError as error:
        # Messages begin with the field's name: "top_p=2 is out of range; ...".
        name = str(error).partition("=")[0]
        raise ApiError(400, str(error), name if name in _SAME_NAME else None) from error


def _biases(given: dict[str, float]) -> dict[int, float]:
    """JSON's keys are texts; token ids are integers."""
    biases = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            message = f"logit_bias: {key!r} is not a token id; use integers of the vocabulary"
            raise ApiError(400, message, "logit_bias")
        biases[int(key)] = value
    return biases
