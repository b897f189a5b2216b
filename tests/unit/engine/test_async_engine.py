"""`AsyncEngine` over a toy model: streams, aborts, overload, failure, end."""

import asyncio
import itertools
import random
import time
from contextlib import closing

import pytest
from toy_executor import ToyExecutor, toy_output

from sidewinder.engine.async_engine import AsyncEngine, EngineClosed, Overloaded
from sidewinder.engine.engine import Engine
from sidewinder.engine.gathering import Gatherer
from sidewinder.engine.intake import Call
from sidewinder.engine.limits import Limits
from sidewinder.engine.request import Request
from sidewinder.parallel.errors import RankError, RankFailure
from sidewinder.sampling import SamplingParams

LIMITS = Limits(n_slots=3, max_step_tokens=16, max_logit_rows=100)
IDS = itertools.count()


class Recorder:
    """An observer that remembers."""

    def __init__(self):
        self.n_tokens = self.n_first = 0
        self.reasons = []

    def tokens(self, n_tokens, seconds, first):
        assert seconds >= 0
        self.n_tokens += n_tokens
        self.n_first += first

    def finished(self, reason, seconds):
        assert seconds >= 0
        self.reasons.append(reason)


class Slow(ToyExecutor):
    """A step takes long enough for readers to read."""

    def step(self, plan):
        time.sleep(0.001)
        return super().step(plan)


def call(prompt=(1, 2, 3), max_tokens=5):
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return Call(Request(next(IDS), tuple(prompt), params))


def submit(engine, *calls):
    return engine.submit(calls, engine.reserve(len(calls)))


async def token_ids(stream):
    """Tokens by request, until all requests of the stream are complete."""
    tokens = {}
    async for increments in stream:
        assert increments
        for increment in increments:
            tokens.setdefault(increment.request_id, []).extend(increment.token_ids)
    return tokens


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def run(scenario, max_open=20, executor=None, gatherer=None):
    """Run `scenario(async engine, engine, observer)`; nothing may be left open afterwards."""

    async def main():
        engine, observer = Engine(executor or ToyExecutor(LIMITS), LIMITS), Recorder()
        asynchronous = AsyncEngine(engine, max_open, observer, gatherer)
        with closing(asynchronous):
            async with asyncio.timeout(30):
                await scenario(asynchronous, engine, observer)
        assert asynchronous.n_open == 0

    asyncio.run(main())


def test_requests_of_one_stream_come_interleaved_and_complete():
    async def scenario(engine, _, observer):
        calls = [call((n, n + 1), max_tokens=4 + n) for n in range(5)]
        tokens = await token_ids(submit(engine, *calls))
        for n, own in enumerate(calls):
            assert tokens[own.request.id] == toy_output((n, n + 1), 4 + n)
        assert observer.reasons == ["length"] * 5
        assert observer.n_tokens == sum(map(len, tokens.values()))
        assert observer.n_first == 5

    run(scenario)


def test_a_slow_reader_gets_several_steps_at_once():
    async def scenario(engine, inner, _observer):
        stream = submit(engine, call((1,), max_tokens=9))
        await until(lambda: engine.n_open == 0)
        (increments,) = [found async for found in stream]
        assert [len(each.token_ids) for each in increments] == [1] * 9
        assert not inner.has_work

    run(scenario)


def test_closing_a_stream_frees_its_slots_at_once():
    async def scenario(engine, inner, observer):
        endless = [call(max_tokens=10**9) for _ in range(3)]
        stream = submit(engine, *endless)
        await anext(stream)
        waiting = submit(engine, call((7,), max_tokens=2))
        stream.close()
        stream.close()
        assert engine.n_open == 1
        assert await token_ids(waiting)
        assert inner.n_running == 0
        assert observer.reasons == ["abort"] * 3 + ["length"]

    run(scenario)


def test_full_queue_is_refused_until_there_is_room():
    async def scenario(engine, _inner, _observer):
        stream = submit(engine, call(max_tokens=10**9), call(max_tokens=10**9))
        kept = engine.reserve(1)
        with pytest.raises(Overloaded, match="3 requests are open and 3 may be") as caught:
            engine.reserve(1)
        assert 1 <= caught.value.retry_after_s <= 60
        kept.release()
        kept.release()
        engine.reserve(1).release()
        stream.close()
        engine.reserve(3).release()

    run(scenario, max_open=3)


def test_a_failing_step_ends_every_stream():
    class Failing(ToyExecutor):
        def step(self, plan):
            if len(self.plans) == 4:
                raise RuntimeError("rank 1 of 2 was killed")
            return super().step(plan)

    async def scenario(engine, _inner, observer):
        streams = [submit(engine, call(max_tokens=100)) for _ in range(5)]
        ended = await asyncio.gather(*map(token_ids, streams), return_exceptions=True)
        assert all(isinstance(error, EngineClosed) for error in ended)
        assert "rank 1 of 2 was killed" in str(ended[0])
        assert engine.failed
        assert observer.reasons == ["error"] * 5
        with pytest.raises(EngineClosed, match="killed"):
            engine.reserve(1)

    run(scenario, executor=Failing(LIMITS))


def test_a_rank_that_ends_while_nothing_runs_is_noticed(monkeypatch):
    """A server would call itself ready, and lose the next request."""
    monkeypatch.setattr("sidewinder.engine.async_engine.CHECK_S", 0.01)

    class Ending(ToyExecutor):
        checks = 0

        def check(self):
            self.checks += 1
            if self.checks == 3 and self.plans:
                raise RankFailure("rank 1 of 2 died")
            self.checks %= 3

    async def scenario(engine, *_):
        assert await token_ids(submit(engine, call()))
        while not engine.failed:
            await asyncio.sleep(0.01)
        with pytest.raises(EngineClosed, match="rank 1 of 2 died"):
            engine.reserve(1)

    run(scenario, executor=Ending(LIMITS))


@pytest.mark.parametrize("kind", [RankError, RankFailure])
def test_a_ranks_traceback_is_for_the_log(caplog, kind):
    text = "rank 0 of 2 raised\n\nTraceback ...\nKeyError: 'x'"

    class Failing(ToyExecutor):
        def step(self, _plan):
            raise kind(text if kind is RankError else "rank 1 of 2 died")

    async def scenario(engine, *_):
        [ended] = await asyncio.gather(token_ids(submit(engine, call())), return_exceptions=True)
        reason = str(ended)
        assert "Traceback" not in reason
        assert ("raised KeyError: 'x'" if kind is RankError else "rank 1 of 2 died") in reason

    run(scenario, executor=Failing(LIMITS))
    assert ("Traceback ..." in caplog.text) == (kind is RankError)


@pytest.mark.parametrize("events_per_s", [None, 0.1])
def test_tokens_from_before_a_failing_step_arrive(events_per_s):
    class Failing(ToyExecutor):
        def step(self, plan):
            if len(self.plans) == 6:
                raise RuntimeError("rank 1 of 2 was killed")
            return super().step(plan)

    async def scenario(engine, _inner, _observer):
        stream, found = submit(engine, call((1,), max_tokens=100)), []

        async def read():
            async for increments in stream:
                found.extend(token for each in increments for token in each.token_ids)

        with pytest.raises(EngineClosed, match="killed"):
            await read()
        assert found == toy_output((1,), 6)

    run(scenario, executor=Failing(LIMITS), gatherer=Gatherer(events_per_s))


def test_gathered_streams_have_the_same_tokens_in_fewer_pieces():
    async def scenario(engine, inner, observer):
        calls = [call((n, n + 1), max_tokens=30 + n) for n in range(3)]
        streams, pieces = [submit(engine, one) for one in calls], []

        async def read(stream):
            found = []
            async for increments in stream:
                pieces.append(len(increments))
                found += [token for each in increments for token in each.token_ids]
            return found

        found = await asyncio.gather(*map(read, streams))
        assert found == [toy_output((n, n + 1), 30 + n) for n in range(3)]
        assert len(pieces) <= 12
        assert observer.n_tokens == 30 + 31 + 32
        assert not inner.has_work

    run(scenario, executor=Slow(LIMITS), gatherer=Gatherer(0.1))


def test_close_ends_what_is_open_and_is_no_failure():
    async def scenario(engine, inner, _observer):
        stream = submit(engine, call(max_tokens=10**9))
        await anext(stream)
        engine.close()
        with pytest.raises(EngineClosed, match="was closed"):
            await token_ids(stream)
        assert not engine.failed
        assert not inner.has_work

    run(scenario)


@pytest.mark.parametrize("events_per_s", [None, 250])
def test_many_callers_that_come_and_go(events_per_s):
    """Whoever stays gets the text that he would get alone; whoever leaves leaves nothing."""

    async def caller(engine, seed):
        own = random.Random(seed)
        await asyncio.sleep(own.random() * 0.05)
        prompt = tuple(own.randrange(50) for _ in range(own.randint(1, 40)))
        n_tokens = own.randint(1, 30)
        one = call(prompt, n_tokens)
        with closing(submit(engine, one)) as stream:
            if own.random() < 0.3:
                await asyncio.wait([asyncio.ensure_future(anext(stream))], timeout=0.005)
                return
            tokens = await token_ids(stream)
        assert tokens[one.request.id] == toy_output(prompt, n_tokens)

    async def scenario(engine, inner, observer):
        await asyncio.gather(*(caller(engine, seed) for seed in range(80)))
        await until(lambda: not inner.has_work)
        assert inner.n_running == 0
        assert len(observer.reasons) == 80

    run(scenario, max_open=80, gatherer=Gatherer(events_per_s))
