"""What callers may pass as prompts and params; everything is checked before anything runs."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sidewinder.sampling import SamplingParams

Prompt = str | Sequence[int]


def prompt_list(prompts: Any) -> list[Prompt]:
    """One prompt (text or token ids) or a list of them, as a list.

    Raises:
        ValueError: if there is none, or it is something else.
    """
    if isinstance(prompts, str):
        return [prompts]
    items = as_list(prompts)
    if items is None:
        raise ValueError(
            f"prompts of type {type(prompts).__name__} are not supported; "
            "use a text, a list of token ids, or a list of those"
        )
    if not items:
        raise ValueError("there is no prompt; give at least one text or list of token ids")
    return [prompts] if _is_integer(items[0]) else items


def as_list(values: Any) -> list[Any] | None:
    """A list, tuple, array or tensor as a list; None for anything else."""
    if isinstance(values, list | tuple | range):
        return list(values)
    if hasattr(values, "tolist") and getattr(values, "ndim", 0) > 0:
        return list(values.tolist())
    return None


def check_tokens(tokens: Any, vocab_size: int) -> tuple[int, ...]:
    """Token ids of one prompt.

    Raises:
        ValueError: if there is none, or one is not an id of the vocabulary.
    """
    items = as_list(tokens)
    if items is None:
        raise ValueError(
            f"a prompt of type {type(tokens).__name__} is not supported; "
            "use a text or a list of token ids"
        )
    if not items:
        raise ValueError("the prompt is empty; give at least one token")
    # Long prompts of plain integers, as most are: milliseconds before the first token.
    if set(map(type, items)) == {int} and min(items) >= 0 and max(items) < vocab_size:
        return tuple(items)
    for position, token in enumerate(items):
        if not _is_integer(token):
            several = ", or call once per text" if isinstance(token, str) else ""
            raise ValueError(
                f"{reprlib.repr(token)} at position {position} is not a token id; "
                f"use integers{several}"
            )
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"token id {token} at position {position} is outside the vocabulary; "
                f"use ids from 0 to {vocab_size - 1}"
            )
    return tuple(int(token) for token in items)


def params_list(params: Any, n_prompts: int) -> list[SamplingParams]:
    """One set of params for all prompts, or one per prompt, as one per prompt.

    Raises:
        ValueError: if their number is another, or they are something else.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * n_prompts
    listed = list(params) if isinstance(params, list | tuple) else [params]
    for item in listed:
        if not isinstance(item, SamplingParams):
            raise ValueError(f"params={item!r} are not SamplingParams; use SamplingParams(...)")
    if len(listed) != n_prompts:
        raise ValueError(
            f"{len(listed)} params for {n_prompts} prompts; give one for all, or one per prompt"
        )
    return listed


def resolve_params(
    params: SamplingParams,
    n_prompt: int,
    defaults: Mapping[str, Any],
    vocab_size: int,
    max_model_len: int | None,
) -> SamplingParams:
    """`params` with max_tokens and what else is open filled in, checked against the model.

    Args:
        params: as a caller gave them.
        n_prompt: tokens of the prompt.
        defaults: values of fields of `params` that are None.
        vocab_size: the model's.
        max_model_len: the engine's.

    Raises:
        ValueError: if prompt and output together exceed `max_model_len`, `max_tokens=None` has no
            such limit, or a stop id or biased token is not in the vocabulary.
    """
    biased = tuple(token for token, _ in params.logit_bias)
    for name, ids in (("stop_token_ids", params.stop_token_ids), ("logit_bias", biased)):
        if ids and max(ids) >= vocab_size:
            raise ValueError(
                f"{name}: {max(ids)} is outside the vocabulary; use ids below {vocab_size}"
            )
    max_tokens = params.max_tokens
    if max_tokens is None:
        if max_model_len is None:
            raise ValueError(
                "max_tokens=None continues to max_model_len, which is not set; set one of them"
            )
        max_tokens = max(1, max_model_len - n_prompt, params.min_tokens)
    check_length(n_prompt, max_tokens, max_model_len)
    missing = {name: value for name, value in defaults.items() if getattr(params, name) is None}
    return replace(params, **missing, max_tokens=max_tokens)


def check_length(n_prompt: int, max_tokens: int, max_model_len: int | None) -> None:
    """Raise ValueError if a prompt with its output is longer than `max_model_len`."""
    if max_model_len is not None and n_prompt + max_tokens > max_model_len:
        output = f" and max_tokens={max_tokens}" if max_tokens else ""
        raise ValueError(
            f"a prompt of {n_prompt} tokens{output} exceed max_model_len={max_model_len}; "
            "shorten the prompt, lower max_tokens, or raise max_model_len"
        )


def _is_integer(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and not _has_shape(value)


def _has_shape(value: object) -> bool:
    return getattr(value, "ndim", 0) > 0
