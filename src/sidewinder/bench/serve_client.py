"""Sends one request of a load and notes when each piece of the answer came."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from sidewinder.bench.event_client import EventClient
from sidewinder.bench.serve_load import Ask

TIMEOUT_S = 600.0


@dataclass
class Answer:
    """What came of one request; times in seconds.

    Attributes:
        sent_s: when it was sent, after the pass began.
        late_s: how much later than planned: the client's own delay.
        ttft_s: until the first piece of text; None without one.
        itl_s: between a piece of text and the next.
        e2e_s: until the end.
        prompt_tokens, cached_tokens, output_tokens: the server's count.
        error: what went wrong; None if nothing did.
    """

    sent_s: float = 0.0
    late_s: float = 0.0
    ttft_s: float | None = None
    itl_s: list[float] = field(default_factory=list)
    e2e_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None for fewer than two tokens."""
        if self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


class Target:
    """A server with OpenAI's completions.

    Args:
        url: without `/v1`.
        model: what to call the model.
        api_key: bearer token, or None.
    """

    def __init__(self, url: str, model: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.model = model
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.client = httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=TIMEOUT_S, trust_env=False
        )
        self._events = EventClient(self.url, headers)

    async def ask(self, ask: Ask) -> Answer:
        """Send one request and read its stream to the end. Failures are in the answer."""
        body = {
            "model": self.model,
            "prompt": ask.prompt,
            "max_tokens": ask.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started = time.perf_counter()
        reader = _Reader(started)
        data = json.dumps(body).encode()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status, rest = await self._events.post("/v1/completions", data, reader.take)
            if status != 200:
                reader.answer.error = f"{status}: {rest.decode(errors='replace')[:200]}"
        except OSError as error:  # a timeout is one
            reader.answer.error = f"{type(error).__name__}: {error}"
        reader.answer.e2e_s = time.perf_counter() - started
        if reader.answer.error is None and not reader.done:
            reader.answer.error = "the stream ended early"
        return reader.answer

    def close(self) -> None:
        """End the connections of streams."""
        self._events.close()


class _Reader:
    """Makes an answer from the events of one stream."""

    def __init__(self, started: float) -> None:
        self.answer = Answer()
        self.done = False
        self._started = self._last = started

    def take(self, data: bytes, now: float) -> None:
        """One event, and when it came."""
        if data == b"[DONE]":
            self.done = True
            return
        answer, part = self.answer, json.loads(data)
        if "error" in part:
            answer.error = str(part["error"])[:200]
            return
        if any(choice["text"] for choice in part["choices"]):
            if answer.ttft_s is None:
                answer.ttft_s = now - self._started
            else:
                answer.itl_s.append(now - self._last)
            self._last = now
        _take_usage(answer, part.get("usage") or {})


def _take_usage(answer: Answer, usage: dict[str, Any]) -> None:
    if usage:
        answer.prompt_tokens = usage["prompt_tokens"]
        answer.output_tokens = usage["completion_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        answer.cached_tokens = details.get("cached_tokens") or 0


async def send_all(target: Target, asks: list[Ask], concurrency: int | None) -> list[Answer]:
    """Send every request at its time, at most `concurrency` at once; answers in their order."""
    places = asyncio.Semaphore(concurrency or len(asks))
    began = time.perf_counter()

    async def send(ask: Ask) -> Answer:
        await asyncio.sleep(max(0.0, began + ask.at_s - time.perf_counter()))
        async with places:
            sent_s = time.perf_counter() - began
            answer = await target.ask(ask)
        answer.sent_s, answer.late_s = sent_s, sent_s - ask.at_s
        return answer

    return list(await asyncio.gather(*(send(ask) for ask in asks)))
