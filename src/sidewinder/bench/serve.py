"""Load on a running server, and what its clients saw of it."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from sidewinder.bench.serve_client import Answer, Target, send_all
from sidewinder.bench.serve_load import Ask, ServeLoad, arrivals, read_conversations, synthetic

PERCENTILES = (10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True)
class Objectives:
    """Service-level objectives; a request that meets all counts for goodput.

    Attributes:
        ttft_s, tpot_s, e2e_s: most seconds; None does not matter.

    Raises:
        ValueError: for a time that no request can meet.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def __post_init__(self) -> None:
        for name, seconds in vars(self).items():
            if seconds is not None and not 0 < seconds < math.inf:
                raise ValueError(f"{name}={seconds} must be a positive number of seconds, or None")

    def met(self, answer: Answer) -> bool:
        """Whether a request met them; one that failed did not."""
        pairs = (
            (self.ttft_s, answer.ttft_s),
            (self.tpot_s, answer.tpot_s),
            (self.e2e_s, answer.e2e_s),
        )
        fine = all(limit is None or (found or 0.0) <= limit for limit, found in pairs)
        return answer.error is None and fine


async def bench_serve(
    url: str,
    load: ServeLoad,
    objectives: Objectives,
    passes: int = 1,
    model: str | None = None,
    dataset: Path | None = None,
    api_key: str | None = None,
) -> dict[str, Any]:
    """Run the same requests `passes` times against a server; the first time finds it cold.

    Args:
        url: of the server; a `/v1` at its end means nothing.
        load: what to send, and when.
        objectives: for goodput.
        passes: the second and later ones find what the first left in the server's cache.
        model: None takes the server's only one.
        dataset: a file like ShareGPT's, for prompts and lengths of replies.
        api_key: bearer token.

    Returns:
        `load` and, for each pass, its figures; `answers` has the raw times of each pass.

    Raises:
        ValueError: if the server or the dataset cannot be used.
    """
    pairs = None if dataset is None else read_conversations(dataset)
    target = Target(url.rstrip("/").removesuffix("/v1"), model or "", api_key)
    async with target.client:
        served = await _models(target)
        if model is None:
            target.model = served[0]
        elif model not in served:
            raise ValueError(f"{url} does not serve {model!r}; it serves {', '.join(served)}")
        asks = synthetic(load) if pairs is None else await _recorded(target, load, pairs)
        runs = []
        for _ in range(passes):
            runs.append(await send_all(target, asks, load.concurrency))
            await asyncio.sleep(0.2)
        target.close()
    return {
        "model": target.model,
        "load": asdict(load) | {"dataset": None if dataset is None else dataset.name},
        "objectives": asdict(objectives),
        "passes": [summary(answers, objectives) for answers in runs],
        "answers": [[asdict(answer) for answer in answers] for answers in runs],
    }


def summary(answers: Sequence[Answer], objectives: Objectives) -> dict[str, Any]:
    """Figures of one pass: rates over its whole duration, and distributions over its requests."""
    good = [answer for answer in answers if answer.error is None]
    seconds = max(answer.sent_s + answer.e2e_s for answer in answers)
    output_tokens = sum(answer.output_tokens for answer in good)
    prompt_tokens = sum(answer.prompt_tokens for answer in good)
    return {
        "requests": len(answers),
        "failed": len(answers) - len(good),
        "errors": sorted({answer.error for answer in answers if answer.error})[:5],
        "duration_s": seconds,
        "requests_per_s": len(good) / seconds,
        "goodput_requests_per_s": sum(map(objectives.met, answers)) / seconds,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": sum(answer.cached_tokens for answer in good),
        "output_tokens": output_tokens,
        "output_tokens_per_s": output_tokens / seconds,
        "total_tokens_per_s": (prompt_tokens + output_tokens) / seconds,
        "peak_concurrency": _peak(answers),
        "client_delay_s": distribution([answer.late_s for answer in answers]),
        "ttft_s": distribution([a.ttft_s for a in good if a.ttft_s is not None]),
        "tpot_s": distribution([a.tpot_s for a in good if a.tpot_s is not None]),
        "itl_s": distribution([gap for answer in good for gap in answer.itl_s]),
        "e2e_s": distribution([answer.e2e_s for answer in good]),
    }


def distribution(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, extremes and percentiles (nearest rank); None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    found = {f"p{p}": ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] for p in PERCENTILES}
    return {"mean": sum(ordered) / len(ordered), "min": ordered[0], "max": ordered[-1]} | found


def _peak(answers: Sequence[Answer]) -> int:
    """Most requests that were open at one moment."""
    changes = [(answer.sent_s, 1) for answer in answers]
    changes += [(answer.sent_s + answer.e2e_s, -1) for answer in answers]
    now = peak = 0
    for _, change in sorted(changes):
        now += change
        peak = max(peak, now)
    return peak


async def _models(target: Target) -> list[str]:
    try:
        reply = await target.client.get("/v1/models")
        reply.raise_for_status()
        return [str(card["id"]) for card in reply.json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 401:
            raise ValueError(
                f"{target.url} needs its API key: give --api-key, or set SIDEWINDER_API_KEY"
            ) from error
        raise ValueError(
            f"{target.url} is not a server that answers: {error}; start one with "
            "`sidewinder serve MODEL`, or name it with --url"
        ) from error


async def _recorded(target: Target, load: ServeLoad, pairs: Sequence[tuple[str, str]]) -> list[Ask]:
    """Questions of a dataset; each reply is as long as the recorded one, up to `output_tokens`."""
    chosen = [pairs[i % len(pairs)] for i in range(load.requests)]
    times = arrivals(replace(load, requests=len(chosen)))
    lengths = {text: await _count(target, text) for text in {answer for _, answer in chosen}}
    return [
        Ask(question, max(1, min(lengths[answer], load.output_tokens)), at)
        for (question, answer), at in zip(chosen, times, strict=True)
    ]


async def _count(target: Target, text: str) -> int:
    try:
        reply = await target.client.post("/tokenize", json={"prompt": text})
        reply.raise_for_status()
        return int(reply.json()["count"])
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise ValueError(f"{target.url}/tokenize cannot count tokens: {error}") from error
