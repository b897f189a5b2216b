"""Requests and answers that cross processes: the bridge alone, without Ray."""

import asyncio
import subprocess
import sys

import pytest

from sidewinder.scale_out.metrics import merge
from sidewinder.scale_out.relay import Relayed, answer, plain_scope

START = {"type": "http.response.start", "status": 200, "headers": []}


async def echo(scope, receive, send):
    """Sends back what it got."""
    part = await receive()
    await send(START)
    await send({"type": "http.response.body", "body": part["body"] + scope["path"].encode()})


def test_messages_come_back_in_order():
    async def run():
        return [message async for message in answer(echo, {"path": "/x"}, b"hello ")]

    assert asyncio.run(run()) == [START, {"type": "http.response.body", "body": b"hello /x"}]


def test_closing_early_tells_the_application():
    seen = []

    async def endless(_, receive, send):
        await receive()
        await send(START)
        seen.append((await receive())["type"])

    async def run():
        messages = answer(endless, {}, b"")
        assert await anext(messages) == START
        await messages.aclose()

    asyncio.run(run())
    assert seen == ["http.disconnect"]


def test_failures_of_the_application_are_raised():
    async def broken(_, receive, send):  # noqa: ARG001
        raise KeyError("here")

    async def run():
        return [message async for message in answer(broken, {}, b"")]

    with pytest.raises(KeyError):
        asyncio.run(run())


def relay(messages, disconnect=False):
    """What a `Relayed` sends; None at the end stands for its `cancel`."""
    sent = []

    async def receive():
        if not disconnect:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def run():
        response = Relayed(messages, lambda: sent.append(None), (ConnectionError,))
        await response({"type": "http", "method": "POST"}, receive, send)

    return run, sent


async def failing(n_good):
    for _ in range(n_good):
        yield START
    raise ConnectionError


def test_a_replica_that_is_gone_is_a_503():
    run, sent = relay(failing(0))
    asyncio.run(run())
    assert sent[0]["status"] == 503
    assert b"replica_gone" in sent[1]["body"]
    assert sent[-1] is None


def test_a_replica_that_goes_in_the_middle_breaks_the_connection():
    run, sent = relay(failing(1))
    with pytest.raises(ConnectionError):
        asyncio.run(run())
    assert sent == [START, None]


def test_a_client_that_leaves_cancels():
    async def endless():
        yield START
        await asyncio.Event().wait()

    run, sent = relay(endless(), disconnect=True)
    asyncio.run(run())
    assert sent[-1] is None


def test_only_plain_parts_of_a_scope_travel():
    assert plain_scope({"type": "http", "path": "/", "app": object()}) == {
        "type": "http",
        "path": "/",
    }


def test_metrics_of_replicas_are_told_apart():
    text = '# HELP x_total Things\n# TYPE x_total counter\nx_total{kind="a"} %d.0\n'
    page = merge({"r1": text % 1, "r2": text % 2}).body.decode()
    assert page.count("# TYPE x_total counter") == 1
    assert 'x_total{kind="a",replica="r1"} 1.0' in page
    assert 'x_total{kind="a",replica="r2"} 2.0' in page


def test_a_single_machine_needs_no_ray():
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import sidewinder, sidewinder.cli, sidewinder.server.run\n"
        "import sidewinder.scale_out.routing, sidewinder.scale_out.relay"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
