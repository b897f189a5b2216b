"""What `sidewinder bench serve` asks for, and when: prompts and arrival times."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIRST_ID = 10
"""Synthetic prompts use ids from here on: the first ones are often special tokens."""


@dataclass(frozen=True)
class Ask:
    """One request to send.

    Attributes:
        prompt: text, or token ids.
        max_tokens: tokens to generate.
        at_s: seconds after the start; 0 for all where only the concurrency limits.
    """

    prompt: str | list[int]
    max_tokens: int
    at_s: float = 0.0


@dataclass(frozen=True)
class ServeLoad:
    """The load of one pass.

    Attributes:
        requests: how many.
        rate: requests per second on average; None sends as fast as `concurrency` allows.
        burstiness: shape of the gamma distribution of the gaps: 1 is a Poisson process, less comes
            in bursts, more is more even.
        concurrency: most requests at once; None sends each at its time.
        prompt_tokens, output_tokens: of synthetic requests; a dataset's replies are cut to
            `output_tokens`.
        prefix_tokens: how many of the prompt's tokens are shared, by one of `prefixes` beginnings.
        vocab_size: ids of synthetic prompts are below.
        seed: of prompts and arrivals.

    Raises:
        ValueError: for a value that it cannot have.
    """

    requests: int = 100
    rate: float | None = None
    burstiness: float = 1.0
    concurrency: int | None = None
    prompt_tokens: int = 256
    output_tokens: int = 64
    prefix_tokens: int = 0
    prefixes: int = 1
    vocab_size: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("requests", "prompt_tokens", "output_tokens", "prefixes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a count; use 1 or more")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"concurrency={self.concurrency} must be 1 or more")
        if self.rate is not None and not 0 < self.rate < 1e6:
            raise ValueError(f"rate={self.rate} must be a positive number of requests per second")
        if not 0 < self.burstiness < 1e6:
            raise ValueError(f"burstiness={self.burstiness} must be a positive number")
        if not 0 <= self.prefix_tokens < self.prompt_tokens:
            raise ValueError(
                f"prefix_tokens={self.prefix_tokens} must be 0 or more and below prompt_tokens="
                f"{self.prompt_tokens}"
            )
        if self.vocab_size <= FIRST_ID:
            raise ValueError(f"vocab_size={self.vocab_size} must be above {FIRST_ID}")


def synthetic(load: ServeLoad) -> list[Ask]:
    """Random token ids; each prompt begins with one of the shared beginnings, in turn."""
    drawn = random.Random(load.seed)

    def ids(n: int) -> list[int]:
        return [drawn.randrange(FIRST_ID, load.vocab_size) for _ in range(n)]

    beginnings = [ids(load.prefix_tokens) for _ in range(load.prefixes)]
    own = load.prompt_tokens - load.prefix_tokens
    prompts = [beginnings[i % load.prefixes] + ids(own) for i in range(load.requests)]
    times = arrivals(load)
    return [Ask(prompt, load.output_tokens, at) for prompt, at in zip(prompts, times, strict=True)]


def arrivals(load: ServeLoad) -> list[float]:
    """When each request is sent, in seconds; gaps are gamma-distributed with mean 1 / rate."""
    if load.rate is None:
        return [0.0] * load.requests
    drawn = random.Random(load.seed + 1)
    now, times = 0.0, []
    for _ in range(load.requests):
        times.append(now)
        now += drawn.gammavariate(load.burstiness, 1 / (load.rate * load.burstiness))
    return times


def read_conversations(file: Path) -> list[tuple[str, str]]:
    """First question and answer of every conversation in a file like ShareGPT's.

    Its JSON is `[{"conversations": [{"from": ..., "value": text}, ...]}, ...]`; conversations of
    fewer than two turns are left out.

    Raises:
        ValueError: if it is not such a file.
    """
    try:
        items = json.loads(file.read_text(encoding="utf-8"))
        pairs = [_first_turns(item) for item in items]
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        example = '[{"conversations": [{"from": "human", "value": "..."}, ...]}]'
        raise ValueError(f"{file} is not like {example}: {error!r}") from error
    found = [pair for pair in pairs if pair is not None]
    if not found:
        raise ValueError(f"{file} has no conversation of two turns")
    return found


def _first_turns(item: dict[str, Any]) -> tuple[str, str] | None:
    turns = [turn["value"] for turn in item["conversations"][:2]]
    if len(turns) < 2 or not all(isinstance(text, str) and text for text in turns):
        return None
    return turns[0], turns[1]
