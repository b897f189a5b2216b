"""Ranks as fresh processes, driven over private sockets."""

import math
import os
import pickle
import select
import time
import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

from sidewinder.parallel.cores import CoreLease, lease_cores
from sidewinder.parallel.errors import RankFailure
from sidewinder.parallel.lifeline import Silence, heard
from sidewinder.parallel.protocol import Raised, Transport, WorkerSetup, decode, encode_call
from sidewinder.parallel.rendezvous import Rendezvous
from sidewinder.parallel.spawn import Worker, beat_s, how_it_ended, spawn_worker, stop_workers

IMPORT_TIMEOUT_S = 300.0
"""For a worker's imports, perhaps from a cold network disk; it has no heartbeat until then."""
GRACE_S = 2.0
"""After a rank has failed, how long the others' answers are awaited, to name the first cause."""


class ProcessExecutor:
    """Starts one worker process per rank and makes every call on all of them; one call at a time.

    An exception that every rank raises leaves the executor usable. Anything else that goes wrong
    ends it: a rank that dies or falls silent, an exception on some ranks only (they no longer
    agree), and an interrupt while answers are under way.

    Args:
        size: number of ranks.
        target: "module:function"; builds a rank's runner from `(engine, model, tp, collectives)`.
        engine, model: for the target; picklable.
        device: "cpu", or "cuda" for GPU `r` on rank `r`.
        transport: of the collectives.
        threads: CPU threads per rank.
        timeout_s: seconds without a heartbeat, or behind the first answer, after which a rank
            counts as hung.

    Raises:
        RankFailure, or whatever a rank raised while it started; then no worker is left.
    """

    def __init__(
        self,
        size: int,
        target: str,
        engine: object,
        model: object,
        device: str = "cpu",
        transport: Transport = "gloo",
        threads: int = 1,
        timeout_s: float = 60.0,
    ) -> None:
        self._timeout_s = timeout_s
        self._owner = os.getpid()
        self._doing = "start"
        self._over: str | None = None
        self._silence: Silence | None = None
        self._workers: list[Worker] = []
        self._by_fd: dict[int, Worker] = {}
        self._poll = select.poll()
        lease = lease_cores(size, threads) if transport in ("shared memory", "tcp") else None
        self._finalizer = weakref.finalize(self, _release, self._workers, os.getpid(), lease)
        rendezvous = Rendezvous(size if transport == "shared memory" else 0)
        setups = [
            WorkerSetup(
                rank=rank,
                size=size,
                target=target,
                engine=engine,
                model=model,
                transport=transport,
                rendezvous=rendezvous.path,
                segment=rendezvous.segment,
                device=device if device == "cpu" else f"{device}:{rank}",
                threads=threads,
                cores=lease.cores[rank] if lease else None,
                timeout_s=timeout_s,
            )
            for rank in range(size)
        ]
        try:
            self._start(setups, rendezvous.fds)
        except BaseException:
            self._end("it did not start")
            raise
        finally:
            rendezvous.close()

    def call(self, method: str, *args: object) -> Any:
        if self._over is not None:
            raise RuntimeError(f"the executor is closed: {self._over}")
        self._check_owner()
        message = encode_call(method, args)
        self._doing, self._silence = method, None
        try:
            self._send([message] * len(self._workers))
            answers = self._collect(self._timeout_s, self._timeout_s)
        except BaseException as error:
            self._end(str(error) or type(error).__name__)
            raise
        return self._settle(answers)

    def check(self) -> None:
        self._check_owner()
        self._doing = "a pause"
        if self._silence is None:
            self._silence = Silence([worker.lifeline for worker in self._workers])
        try:
            for worker, silent_s in zip(self._workers, self._silence.look(), strict=True):
                if worker.process.poll() is not None:
                    self._fail(worker, how_it_ended(worker.process))
                if silent_s > self._timeout_s:
                    self._fail_silent(worker, self._timeout_s)
        except RankFailure as failure:
            self._end(str(failure))
            raise

    def close(self) -> None:
        if self._over is None:
            self._over = "close() was called"
        self._finalizer()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers, in rank order."""
        return [worker.process.pid for worker in self._workers]

    def _check_owner(self) -> None:
        """A fork of the caller shares its sockets: the two would take each other's answers."""
        if os.getpid() != self._owner:
            raise RuntimeError(
                f"these ranks belong to process {self._owner}, and this one ({os.getpid()}) is a "
                "fork of it; make an LLM of its own in each process, or start processes by 'spawn'"
            )

    def _start(self, setups: Sequence[WorkerSetup], fds: Sequence[int]) -> None:
        for setup in setups:
            worker = spawn_worker(setup.rank, setup.threads, self._timeout_s, fds)
            self._workers.append(worker)
            self._by_fd[worker.channel.fileno()] = worker
            self._poll.register(worker.channel, select.POLLIN)
        # The group forms only when all ranks have imported, so that its timeout can be short.
        self._settle(self._collect(max(IMPORT_TIMEOUT_S, self._timeout_s), math.inf))
        self._send([pickle.dumps(setup) for setup in setups])
        self._settle(self._collect(self._timeout_s, math.inf))

    def _send(self, messages: Sequence[bytes]) -> None:
        for worker, message in zip(self._workers, messages, strict=True):
            try:
                worker.channel.send(message)
            except TimeoutError:
                self._fail(worker, f"has not read its call for {self._timeout_s:g} s")
            except OSError:
                self._fail(worker, how_it_ended(worker.process))

    def _collect(self, silence_s: float, behind_s: float) -> dict[int, Any]:
        """Answers by rank; some may be missing if another rank's answer is an exception.

        Raises:
            RankFailure: if a rank dies, gives no sign of life for `silence_s`, or comes more than
                `behind_s` after the first answer.
        """
        answers: dict[int, Any] = {}
        last_heard = dict.fromkeys(range(len(self._workers)), time.monotonic())
        give_up_at = math.inf
        while len(answers) < len(self._workers):
            ready = self._poll.poll(beat_s(self._timeout_s) * 1000)
            for fd, _ in ready:
                worker = self._by_fd[fd]
                answer = answers[worker.rank] = self._receive(worker)
                patience = GRACE_S if isinstance(answer, Raised) else behind_s
                give_up_at = min(give_up_at, time.monotonic() + patience)
            if ready:
                continue
            missing = [worker for worker in self._workers if worker.rank not in answers]
            self._check_silence(missing, last_heard, silence_s)
            if time.monotonic() > give_up_at:
                if any(isinstance(answer, Raised) for answer in answers.values()):
                    break
                self._fail(missing[0], f"is {behind_s:g} s behind the others and counts as hung")
        return answers

    def _receive(self, worker: Worker) -> Any:
        try:
            return decode(worker.channel.receive())
        except TimeoutError:
            self._fail(worker, f"stopped in the middle of an answer for {self._timeout_s:g} s")
        except (EOFError, OSError):
            self._fail(worker, how_it_ended(worker.process))

    def _check_silence(
        self, missing: Sequence[Worker], last_heard: dict[int, float], silence_s: float
    ) -> None:
        now = time.monotonic()
        for worker in missing:
            if heard(worker.lifeline):
                last_heard[worker.rank] = now
        oldest = min(missing, key=lambda worker: last_heard[worker.rank])
        if now - last_heard[oldest.rank] > silence_s:
            self._fail_silent(oldest, silence_s)

    def _settle(self, answers: dict[int, Any]) -> Any:
        """Rank 0's result, or the exception that answers hold."""
        raised = {rank: it for rank, it in answers.items() if isinstance(it, Raised)}
        if not raised:
            return answers[0]
        size = len(self._workers)
        missing = [rank for rank in range(size) if rank not in answers]
        # A lost peer is often the consequence of another rank's error: report that one.
        first = min(raised, key=lambda rank: (raised[rank].kind == RankFailure.__name__, rank))
        error = raised[first].error(first, size)
        if isinstance(error, RankFailure) or len(raised) < size:
            self._end(str(error))
        if isinstance(error, RankFailure) and missing:
            raise RankFailure(f"rank {missing[0]} of {size} did not answer: {error}") from error
        raise error

    def _fail_silent(self, worker: Worker, silence_s: float) -> NoReturn:
        self._fail(worker, f"has given no sign of life for {silence_s:g} s (stopped or hung)")

    def _fail(self, worker: Worker, what: str) -> NoReturn:
        raise RankFailure(f"rank {worker.rank} of {len(self._workers)} {what} during {self._doing}")

    def _end(self, reason: str) -> None:
        self._over = reason
        for worker in self._workers:
            worker.process.kill()
        self._finalizer()


def _release(workers: list[Worker], owner: int, lease: CoreLease | None) -> None:
    stop_workers(workers, owner)
    if lease is not None:
        lease.close()
