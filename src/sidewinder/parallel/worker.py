"""One rank as a process: `python -m sidewinder.parallel.worker`, started by `ProcessExecutor`."""

import argparse
import contextlib
import os
import pickle
import signal
import socket
import sys
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from sidewinder.logs import start_logging
from sidewinder.parallel.channel import Channel
from sidewinder.parallel.lifeline import die_with_parent, start_lifeline
from sidewinder.parallel.protocol import EMPTY, Raised, WorkerSetup, decode, encode_answer


def main() -> int:
    """Serve the caller until it says stop or is gone; the process's exit status."""
    options = _parse_arguments()
    if options.log_json:
        start_logging("json")
    # Ctrl-C is the caller's: it ends the ranks in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if options.die_with_parent:
        die_with_parent()
    # Before the heartbeat: it would hide imports that hang.
    rank = _import_rank()
    lifeline = socket.socket(fileno=options.lifeline)
    start_lifeline(lifeline, options.parent, options.heartbeat, on_lost=lambda: os._exit(1))
    channel = Channel(socket.socket(fileno=options.channel))
    try:
        if isinstance(rank, Exception):
            return _give_up(channel, rank)
        channel.send(EMPTY)
        return _run(channel, rank, decode(channel.receive()))
    except (EOFError, OSError):
        return 1  # The caller is gone, and has said why, if there was anyone to tell.


def _import_rank() -> ModuleType | Exception:
    """All that is slow or may fail to import, for one: with a wrong SIDEWINDER_OPS."""
    try:
        return import_module("sidewinder.parallel.rank")
    except Exception as error:
        return error


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One rank of Sidewinder; started by its caller.")
    parser.add_argument("--channel", type=int, required=True, help="inherited socket for calls")
    parser.add_argument("--lifeline", type=int, required=True, help="inherited socket for life")
    parser.add_argument("--heartbeat", type=float, required=True, help="seconds between beats")
    parser.add_argument("--parent", type=int, required=True, help="process id of the caller")
    parser.add_argument("--die-with-parent", action="store_true")
    parser.add_argument("--log-json", action="store_true", help="write all lines as JSON")
    return parser.parse_args()


def _run(channel: Channel, rank: ModuleType, setup: WorkerSetup) -> int:
    with contextlib.ExitStack() as resources:
        try:
            if setup.cores is not None:
                os.sched_setaffinity(0, setup.cores)
            collectives = rank.open_collectives(setup)
            resources.callback(collectives.close)
            runner = rank.build(setup, collectives)
        except Exception as error:
            return _give_up(channel, error)
        channel.send(EMPTY)
        _serve(channel, runner, is_first=setup.rank == 0)
    return 0


def _give_up(channel: Channel, error: Exception) -> int:
    channel.send(pickle.dumps(Raised.of(error)))
    channel.receive()  # Stop, or the end of the caller: it has the reason now.
    return 1


def _serve(channel: Channel, runner: object, is_first: bool) -> None:
    while message := channel.receive():
        channel.send(_answer(runner, message, is_first))


def _answer(runner: object, message: bytes | bytearray, is_first: bool) -> bytes:
    try:
        method, args = decode(message)
        return encode_answer(getattr(runner, method)(*args), wanted=is_first)
    except Exception as error:
        return pickle.dumps(Raised.of(error))


def run() -> NoReturn:
    """`main`, and the end of this process."""
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is released; the interpreter's teardown of torch would only keep the caller waiting.
    os._exit(status)


if __name__ == "__main__":
    run()
