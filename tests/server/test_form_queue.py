"""Forms compile one after the other while other requests run, and within a budget of bytes."""

import asyncio
import concurrent.futures
import threading
import time

import httpx
import pytest
from running_server import open_request, serving, wait_for

from sidewinder.sampling.grammar import GrammarCompiler, most_bytes
from sidewinder.sampling.structured import StructuredOutput
from sidewinder.server.stream import EventStream

SHORT = {"prompt": "def f", "max_tokens": 8}


class Gate:
    """Holds compiling up; remembers what was compiled."""

    def __init__(self, monkeypatch):
        self.compiled = []
        self.open = threading.Event()
        real = GrammarCompiler._compile_deep

        def compile_deep(compiler, form):
            self.compiled.append(form.regex)
            assert self.open.wait(30)
            return real(compiler, form)

        monkeypatch.setattr(GrammarCompiler, "_compile_deep", compile_deep)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        yield pool


def ask(client, regex=None, **fields):
    form = {} if regex is None else {"guided_regex": regex}
    return client.post("/v1/completions", json=SHORT | form | fields, timeout=60)


def grammars(server):
    return server.service._intake.grammars


def test_others_go_on_while_a_form_compiles(server, client, gate, pool):
    gate.open.set()
    assert ask(client, "kept[0-9]").status_code == 200
    gate.open.clear()
    slow = pool.submit(ask, client, "slow[0-9]")
    wait_for(lambda: "slow[0-9]" in gate.compiled)
    assert ask(client).status_code == 200
    assert ask(client, "kept[0-9]").json()["choices"][0]["text"].startswith("kept")
    assert not slow.done()
    assert server.engine.n_open == 1
    gate.open.set()
    assert slow.result().json()["choices"][0]["text"].startswith("slow")


def test_equal_forms_compile_once_and_others_in_their_order(server, client, gate, pool):
    names = ["b1", "b2", "b1", "b3", "b2", "b1"]
    waiting = []
    for number, name in enumerate(names, 1):
        waiting.append(pool.submit(ask, client, name))
        wait_for(lambda number=number: server.engine.n_open == number)
    gate.open.set()
    texts = [each.result().json()["choices"][0]["text"] for each in waiting]
    assert texts == names
    assert gate.compiled == ["b1", "b2", "b3"]


def test_a_form_that_does_not_compile(client):
    reply = ask(client, "(a")
    assert reply.status_code == 400
    assert "unclosed" in reply.json()["error"]["message"]


def test_who_goes_away_while_waiting_is_not_compiled(server, client, gate, pool):
    first = pool.submit(ask, client, "c1")
    wait_for(lambda: gate.compiled == ["c1"])
    with open_request(server, guided_regex="c2", stream=True):
        wait_for(lambda: server.engine.n_open == 2)
    with open_request(server, guided_regex="c3"):
        wait_for(lambda: server.engine.n_open == 2)
    wait_for(lambda: server.engine.n_open == 1)
    gate.open.set()
    assert first.result().status_code == 200
    assert ask(client, "c4").status_code == 200
    assert gate.compiled == ["c1", "c4"]


def test_who_goes_away_while_it_compiles_leaves_it_for_others(server, client, gate):
    with open_request(server, guided_regex="d1"):
        wait_for(lambda: gate.compiled == ["d1"])
    wait_for(lambda: server.engine.n_open == 0)
    gate.open.set()
    assert ask(client, "d1").status_code == 200
    assert gate.compiled == ["d1"]


def test_a_form_waits_until_there_is_room_for_its_grammar(server, client, gate, pool, monkeypatch):
    gate.open.set()
    ask(client, "e0")
    cache = grammars(server).cache
    cache.make_room(cache.most_bytes)  # Forget what other tests left.
    long = "e1x{3000}"
    monkeypatch.setattr(cache, "most_bytes", most_bytes(StructuredOutput(regex=long)))
    holder = open_request(server, guided_regex=long)
    wait_for(lambda: server.llm.engine.n_running == 1)
    waiting = pool.submit(ask, client, "e2")
    assert ask(client).status_code == 200
    time.sleep(0.2)
    assert not waiting.done()
    assert "e2" not in gate.compiled
    holder.close()
    assert waiting.result().json()["choices"][0]["text"] == "e2"
    assert cache.n_bytes <= cache.most_bytes


def test_a_reader_that_does_not_read_holds_no_grammar(server, monkeypatch):
    """A text is complete when the engine has it, not when its client has."""

    async def stall(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(EventStream, "_send_all", stall)
    cache = grammars(server).cache
    cache.make_room(cache.most_bytes)
    reader = open_request(server, guided_regex="i1", stream=True)
    wait_for(lambda: cache.n_bytes > 0)
    wait_for(lambda: server.engine.n_open == 0)
    wait_for(lambda: cache.make_room(cache.most_bytes))
    reader.close()


def test_an_equal_form_needs_no_room(server, gate, monkeypatch):
    cache, long = grammars(server).cache, "h1x{3000}"
    cache.make_room(cache.most_bytes)
    monkeypatch.setattr(cache, "most_bytes", most_bytes(StructuredOutput(regex=long)))
    first, second = (open_request(server, guided_regex=long) for _ in range(2))
    wait_for(lambda: server.engine.n_open == 2 and gate.compiled == [long])
    gate.open.set()
    wait_for(lambda: server.llm.engine.n_running == 2)
    first.close()
    second.close()


def test_requests_whose_forms_wait_end_with_the_engine(llm_of_its_own, gate, pool):
    with serving(llm_of_its_own) as server, server.client() as client:
        waiting = [pool.submit(ask, client, f"f{number}") for number in range(3)]
        wait_for(lambda: server.engine.n_open == 3 and len(gate.compiled) == 1)
        server.engine.fail_open("the server is shutting down")
        gate.open.set()
        for each in waiting:
            try:
                reply = each.result(20)
            except httpx.TransportError:  # The process ends meanwhile.
                continue
            assert reply.status_code == 500
            assert "shutting down" in reply.json()["error"]["message"]
    assert len(gate.compiled) == 1


def test_a_drain_waits_for_forms(llm_of_its_own, gate, pool):
    with serving(llm_of_its_own) as server, server.client() as client:
        waiting = pool.submit(ask, client, "g1")
        wait_for(lambda: gate.compiled == ["g1"])
        server.server.drain()
        time.sleep(0.3)
        assert not waiting.done()
        gate.open.set()
        assert waiting.result().json()["choices"][0]["text"] == "g1"
