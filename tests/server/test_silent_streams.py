"""Streams that have nothing to say for a while."""

import asyncio
import json
from contextlib import closing

import httpx
import openai

from sidewinder.cli import main
from sidewinder.server import stream
from sidewinder.server.stream import COMMENT, EventStream


def sent_by(pauses_s):
    """Bodies that a stream sends whose events come after these pauses."""

    async def slow():
        for number, pause_s in enumerate(pauses_s):
            await asyncio.sleep(pause_s)
            yield b"data: %d\n\n" % number

    async def run():
        bodies = []

        async def send(message):
            bodies.append(message.get("body"))

        async def receive():
            await asyncio.sleep(60)

        await EventStream(slow(), on_end=lambda: None)({}, receive, send)
        await asyncio.sleep(0.1)
        return bodies

    return asyncio.run(run())


def test_a_silent_stream_has_comments(monkeypatch):
    monkeypatch.setattr(stream, "SILENCE_S", 0.05)
    start, *bodies, end = sent_by([0.3, 0.0, 0.2])
    assert start is None
    assert end == b"", "nothing after the end"
    first, second, third = (bodies.index(b"data: %d\n\n" % number) for number in range(3))
    assert set(bodies[:first]) == {COMMENT}
    assert second == first + 1
    assert set(bodies[second + 1 : third]) == {COMMENT}
    assert len(bodies) == third + 1


def test_a_stream_that_speaks_has_none(monkeypatch):
    monkeypatch.setattr(stream, "SILENCE_S", 0.6)
    assert COMMENT not in sent_by([0.1] * 14)


def test_others_have_none():
    assert COMMENT not in sent_by([0.1, 0.0])


def test_the_openai_package_skips_comments(server, monkeypatch):
    monkeypatch.setattr(stream, "SILENCE_S", 0.0005)
    connection = httpx.Client(trust_env=False)
    with closing(
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=connection)
    ) as api:
        fields = {"model": "tiny", "prompt": "ab", "max_tokens": 200, "seed": 1}
        extra = {"extra_body": {"ignore_eos": True}}
        whole = api.completions.create(**fields, **extra).choices[0].text
        parts = list(api.completions.create(stream=True, **fields, **extra))
        assert "".join(part.choices[0].text for part in parts) == whole


def test_our_load_client_skips_comments(server, monkeypatch, capsys):
    monkeypatch.setattr(stream, "SILENCE_S", 0.0005)
    load = "--requests 2 --concurrency 1 --prompt-tokens 8 --output-tokens 99 --vocab-size 287"
    assert main(["bench", "serve", "--url", server.url, *load.split(), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out.splitlines()[-1])["passes"]
    assert (result["failed"], result["output_tokens"]) == (0, 198)
