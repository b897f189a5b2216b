"""One rank as a process: `python -m sidewinder.parallel.worker`, started by `ProcessExecutor`."""

import argparse
import contextlib
import os
import pickle
import signal
import socket
import sys

import torch

from sidewinder.collectives.base import Collectives, SingleRank
from sidewinder.collectives.distributed import TorchCollectives, c10d
from sidewinder.collectives.shared_memory import SharedMemoryCollectives, open_segment
from sidewinder.collectives.tcp import TcpCollectives
from sidewinder.logs import start_logging
from sidewinder.parallel.channel import Channel
from sidewinder.parallel.cores import use_threads
from sidewinder.parallel.executor import resolve_target
from sidewinder.parallel.gpu_group import gpu_of, join_gpus
from sidewinder.parallel.group import TensorParallel
from sidewinder.parallel.lifeline import die_with_parent, start_lifeline
from sidewinder.parallel.mesh import open_links
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
    lifeline = socket.socket(fileno=options.lifeline)
    start_lifeline(lifeline, options.parent, options.heartbeat, on_lost=lambda: os._exit(1))
    channel = Channel(socket.socket(fileno=options.channel))
    try:
        channel.send(EMPTY)
        return _run(channel, decode(channel.receive()))
    except (EOFError, OSError):
        return 1  # The caller is gone, and has said why, if there was anyone to tell.


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One rank of Sidewinder; started by its caller.")
    parser.add_argument("--channel", type=int, required=True, help="inherited socket for calls")
    parser.add_argument("--lifeline", type=int, required=True, help="inherited socket for life")
    parser.add_argument("--heartbeat", type=float, required=True, help="seconds between beats")
    parser.add_argument("--parent", type=int, required=True, help="process id of the caller")
    parser.add_argument("--die-with-parent", action="store_true")
    parser.add_argument("--log-json", action="store_true", help="write all lines as JSON")
    return parser.parse_args()


def _run(channel: Channel, setup: WorkerSetup) -> int:
    with contextlib.ExitStack() as resources:
        try:
            if setup.cores is not None:
                os.sched_setaffinity(0, setup.cores)
            collectives = open_collectives(setup)
            resources.callback(collectives.close)
            runner = build(setup, collectives)
        except Exception as error:
            channel.send(pickle.dumps(Raised.of(error)))
            channel.receive()  # Stop, or the end of the caller: it has the reason now.
            return 1
        channel.send(EMPTY)
        _serve(channel, runner, is_first=setup.rank == 0)
    return 0


def open_collectives(setup: WorkerSetup) -> Collectives:
    """This rank's end of the group."""
    tp = TensorParallel(setup.rank, setup.size)
    if tp.size == 1:
        return SingleRank(tp)
    if setup.transport == "shared memory":
        segment = open_segment(setup.segment, tp.size)
        return SharedMemoryCollectives(tp, segment, setup.timeout_s, setup.cores is not None)
    store = c10d.FileStore(setup.rendezvous, tp.size)
    if setup.transport == "tcp":
        own_cores = setup.cores is not None
        links = open_links(tp, store, "127.0.0.1", setup.timeout_s, own_cores)
        return TcpCollectives(tp, links)
    if setup.device != "cpu":
        return join_gpus(tp, store, gpu_of(setup.device), setup.transport, setup.timeout_s)
    return TorchCollectives(tp, store, torch.device("cpu"), setup.timeout_s)


def build(setup: WorkerSetup, collectives: Collectives) -> object:
    """The runner that `setup.target` names, on this rank's device and threads."""
    use_threads(setup.threads)
    if setup.device != "cpu":
        torch.cuda.set_device(gpu_of(setup.device))
    return resolve_target(setup.target)(setup.engine, setup.model, collectives.tp, collectives)


def _serve(channel: Channel, runner: object, is_first: bool) -> None:
    while message := channel.receive():
        channel.send(_answer(runner, message, is_first))


def _answer(runner: object, message: bytes | bytearray, is_first: bool) -> bytes:
    try:
        method, args = decode(message)
        return encode_answer(getattr(runner, method)(*args), wanted=is_first)
    except Exception as error:
        return pickle.dumps(Raised.of(error))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is released; the interpreter's teardown of torch would only keep the caller waiting.
    os._exit(status)
