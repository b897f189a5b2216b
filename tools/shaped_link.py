"""Run ranks on one machine as if on several hosts, joined by links of a set rate.

    tools/shaped_link.py --ranks 2 --rate 1gbit -- .venv/bin/python script.py

Each rank gets a network namespace of its own, with one interface; Linux's token bucket (`tc tbf`)
holds every interface to the rate, in both directions, and netem delays it where the kernel has
netem. Two ranks are joined by one veth pair, more by a bridge in a namespace in between. The
command runs once per rank, with torchrun's variables set, on cores of its own where there are
enough, so a script uses `LLM(..., tp=RANKS, launch="torchrun")`. Nothing is simulated in the
program that runs.

The last line of standard output is one JSON object: rate, delay, seconds, and each rank's exit
status and bytes on its interface (headers included). The exit status is the first rank's that
failed; 2 if the tool cannot work here. Namespaces have no names: they end with their processes.

Needs Linux, iproute2, util-linux, and the right to make network namespaces: root, or (where the
system allows it to users) `unshare --user --map-root-user tools/shaped_link.py ...`.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

from sidewinder.bench.machine import interface_bytes
from sidewinder.parallel.lifeline import die_with_parent

SUBNET = "10.77.0"
PORT = 29577
LINK = "link0"
"""The name of a rank's interface."""
QUEUE_MS = 50
"""How long a packet may wait for its tokens before it is dropped."""
BURST_S = 200e-6
LEAST_BURST = 64 * 1024
"""What may pass at once: time at the rate, but one of the kernel's largest packets at least."""
SEGMENT = 32 * 1024
"""The kernel's packets: it cuts a stream into Ethernet frames as late as it can, as with a network
card that does so. The bucket would cut what is larger than a burst, at a high price per frame."""

UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


class Refusal(Exception):
    """The tool cannot work here; says why and what would help."""


def main(arguments: Sequence[str]) -> int:
    args = _parse(arguments)
    if args.role == "rank":
        return _run_rank(args)
    try:
        bits_per_second(args.rate)
        _check_system()
        if args.role is None:
            _reenter(arguments)
        return _run_all(args)
    except Refusal as refusal:
        print(f"shaped_link: {refusal}", file=sys.stderr)
        return 2


def bits_per_second(rate: str) -> float:
    """`200mbit`, `1gbit`, ... as a number."""
    for unit, factor in UNITS.items():
        number = rate.removesuffix(unit)
        if number != rate and number.replace(".", "", 1).isdigit() and float(number) > 0:
            return float(number) * factor
    raise Refusal(f"--rate {rate} is not a rate; write a number and {', '.join(UNITS)}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    summary, details = __doc__.split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2, choices=range(2, 17), metavar="N")
    parser.add_argument("--rate", default="1gbit", help="of each link and direction (1gbit)")
    parser.add_argument("--delay-ms", type=float, default=0, help="one way; needs netem")
    parser.add_argument("--role", choices=["hub", "rank"], help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--line", type=int, help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="+", help="what every rank runs, after --")
    return parser.parse_args(arguments)


def _check_system() -> None:
    for program in ("ip", "tc", "unshare"):
        if shutil.which(program) is None:
            raise Refusal(f"needs the program {program} (packages iproute2 and util-linux)")
    probe = subprocess.run(
        ["unshare", "--net", "true"], capture_output=True, text=True, check=False
    )
    if probe.returncode != 0:
        raise Refusal(
            f"may not make network namespaces ({probe.stderr.strip()}); run as root, or under "
            "unshare --user --map-root-user"
        )


def _reenter(arguments: Sequence[str]) -> None:
    """Go on in a namespace of the tool's own, where its links and bridge are nobody else's."""
    own = [sys.executable, __file__, "--role", "hub", *arguments]
    os.execvp("unshare", ["unshare", "--net", *own])


class Rank:
    """A rank's launcher, in a network namespace of its own, and the line to it."""

    def __init__(self, args: argparse.Namespace, rank: int) -> None:
        ours, theirs = socket.socketpair()
        tool = [sys.executable, __file__, "--role", "rank", "--rank", str(rank)]
        tool += ["--ranks", str(args.ranks), "--rate", args.rate, "--line", str(theirs.fileno())]
        tool += ["--delay-ms", str(args.delay_ms), "--", *args.command]
        with theirs:
            self.process = subprocess.Popen(
                ["unshare", "--net", *tool], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self.line = ours.makefile("rw")

    def say(self, word: str) -> None:
        print(word, file=self.line, flush=True)

    def hear(self) -> str:
        """What the launcher says next.

        Raises:
            Refusal: if it has ended instead; it has said why.
        """
        word = self.line.readline().strip()
        if not word:
            raise Refusal(f"a launcher ended with status {self.process.wait()}")
        return word


def _run_all(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    ranks = [Rank(args, rank) for rank in range(args.ranks)]
    try:
        for rank in ranks:
            rank.hear()
        _join(args, [rank.process.pid for rank in ranks])
        for word in ("links", "go"):
            started = time.monotonic()
            _ask(ranks, word)
        seconds = time.monotonic() - started
        reports = _ask(ranks, "report")
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.wait()
    rows = [{"rank": number} | json.loads(report) for number, report in enumerate(reports)]
    summary = {"ranks": args.ranks, "rate": args.rate, "delay_ms": args.delay_ms}
    print(json.dumps(summary | {"seconds": seconds, "links": rows}), flush=True)
    return next((int(row["status"]) for row in rows if row["status"] != 0), 0)


def _ask(ranks: Sequence[Rank], word: str) -> list[str]:
    """Say `word` to all launchers; what each answers."""
    for rank in ranks:
        rank.say(word)
    return [rank.hear() for rank in ranks]


def _join(args: argparse.Namespace, pids: Sequence[int]) -> None:
    """Give every rank's namespace its interface."""
    if args.ranks == 2:
        _run("ip", "link", "add", "end0", "type", "veth", "peer", "name", "end1")
    else:
        _run("ip", "link", "add", "hub", "type", "bridge")
        _run("ip", "link", "set", "hub", "up")
        for rank in range(args.ranks):
            port = f"port{rank}"
            _run("ip", "link", "add", f"end{rank}", "type", "veth", "peer", "name", port)
            _run("ip", "link", "set", port, "master", "hub", "up")
            _shape(port, args.rate, 0)
    for rank, pid in enumerate(pids):
        _run("ip", "link", "set", f"end{rank}", "netns", str(pid), "name", LINK)


def _shape(interface: str, rate: str, delay_ms: float) -> None:
    """Hold what leaves the interface to the rate."""
    parent = ["root"]
    if delay_ms > 0:
        # netem's own limit counts packets: enough for the rate times the delay.
        _run("tc", "qdisc", "add", "dev", interface, "root", "handle", "1:", "netem",
             "delay", f"{delay_ms}ms", "limit", "100000")  # fmt: skip
        parent = ["parent", "1:"]
    burst = max(LEAST_BURST, int(bits_per_second(rate) / 8 * BURST_S))
    _run("tc", "qdisc", "add", "dev", interface, *parent, "tbf", "rate", rate,
         "burst", str(burst), "latency", f"{QUEUE_MS}ms")  # fmt: skip


def _run(*command: str) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise Refusal(f"this system refuses {' '.join(command)} ({answer.stderr.strip()})")


def _run_rank(args: argparse.Namespace) -> int:
    """A launcher: sets up its interface, runs the command, reports."""
    die_with_parent()
    line = socket.socket(fileno=args.line).makefile("rw")
    print("hello", file=line, flush=True)
    line.readline()
    try:
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "address", "add", f"{SUBNET}.{args.rank + 1}/24", "dev", LINK)
        _run("ip", "link", "set", LINK, "gso_max_size", str(SEGMENT), "up")
        _shape(LINK, args.rate, args.delay_ms)
    except Refusal as refusal:
        print(f"shaped_link: {refusal}", file=sys.stderr)
        return 2
    print("ready", file=line, flush=True)
    line.readline()
    before = interface_bytes(LINK)
    status = subprocess.run(
        args.command, env=_environment(args), preexec_fn=partial(_settle, args), check=False
    ).returncode
    # The kernel may still be sending what the command left; once all have ended it has sent it.
    print("done", file=line, flush=True)
    line.readline()
    sent, received = (now - then for now, then in zip(interface_bytes(LINK), before, strict=True))
    report = {"status": status, "sent_bytes": sent, "received_bytes": received}
    print(json.dumps(report), file=line, flush=True)
    return 0


def _settle(args: argparse.Namespace) -> None:
    """Of the command's process: end with the launcher, run on this rank's cores."""
    die_with_parent()
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // args.ranks
    if share:
        os.sched_setaffinity(0, cores[args.rank * share : (args.rank + 1) * share])


def _environment(args: argparse.Namespace) -> dict[str, str]:
    """torchrun's variables: every rank is the only one of its host."""
    return os.environ | {
        "RANK": str(args.rank),
        "WORLD_SIZE": str(args.ranks),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": f"{SUBNET}.1",
        "MASTER_PORT": str(PORT),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
