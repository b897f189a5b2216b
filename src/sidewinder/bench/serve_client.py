"""Sends one request of a load and notes when each piece of the answer came."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

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
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.client = httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=TIMEOUT_S, limits=limits, trust_env=False
        )

    async def ask(self, ask: Ask) -> Answer:
        """Send one request and read its stream to the end. Failures are in the answer."""
        answer = Answer()
        started = time.perf_counter()
        body = {
            "model": self.model,
            "prompt": ask.prompt,
            "max_tokens": ask.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            async with self.client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode(errors="replace")
                    answer.error = f"{response.status_code}: {text[:200]}"
                else:
                    await self._read(response, answer, started)
        except httpx.HTTPError as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.e2e_s = time.perf_counter() - started
        return answer

    async def _read(self, response: httpx.Response, answer: Answer, started: float) -> None:
        last, done = started, False
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                done = True
                continue
            now, part = time.perf_counter(), json.loads(line[6:])
            if "error" in part:
                answer.error = str(part["error"])[:200]
                return
            if any(choice["text"] for choice in part["choices"]):
                if answer.ttft_s is None:
                    answer.ttft_s = now - started
                else:
                    answer.itl_s.append(now - last)
                last = now
            _take_usage(answer, part.get("usage") or {})
        if not done:
            answer.error = "the stream ended early"


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
