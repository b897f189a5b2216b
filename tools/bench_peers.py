"""Sidewinder beside transformers and llama.cpp: same shapes, cores and dtype, in one run.

Each measurement is a fresh process pinned to the same cores; peers take turns, round by round, so
that a machine whose speed drifts is fair to all. llama.cpp needs the packages `llama-cpp-python`
and `gguf`; name the Python that has them with --llama-python. The last line of output is JSON.

    python tools/bench_peers.py --shape mamba-130m --cores 0 --output benchmarks/results/peers.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidewinder.bench.machine import machine_info
from sidewinder.bench.shapes import SHAPES
from sidewinder.bench.speed import spread

PEERS = Path(__file__).resolve().parent / "peers"


@dataclass(frozen=True)
class Scenario:
    """A prompt length, new tokens per sequence, and a batch."""

    name: str
    prompt: int
    new: int
    batch: int

    def flags(self) -> list[str]:
        return ["--prompt", str(self.prompt), "--new", str(self.new), "--batch", str(self.batch)]


SCENARIOS = [
    Scenario("prefill", 512, 1, 1),
    Scenario("decode-1", 16, 32, 1),
    Scenario("decode-16", 16, 32, 16),
    Scenario("decode-32", 16, 32, 32),
]

Command = Callable[[Scenario], list[str]]


def commands(args: argparse.Namespace, folder: Path) -> dict[str, Command]:
    """Peer name to the command that measures one scenario."""
    n = len(args.cores.split(","))
    here = [sys.executable]
    ours = [*here, str(PEERS / "run_sidewinder.py"), args.shape, "--dtype", args.dtype]
    theirs = [*here, str(PEERS / "run_transformers.py"), args.shape, "--dtype", args.dtype]
    peers: dict[str, Command] = {
        f"sidewinder tp=1, {n} threads": lambda s: [*ours, "--threads", str(n), *s.flags()],
        "transformers": lambda s: [*theirs, "--threads", str(n), *s.flags()],
    }
    if n > 1:
        peers[f"sidewinder tp={n}"] = lambda s: [*ours, "--tp", str(n), *s.flags()]
    if args.llama_python:
        model = str(folder / "model.gguf")
        convert = [args.llama_python, str(PEERS / "gguf_convert.py"), args.shape, args.dtype, model]
        subprocess.run(convert, check=True)
        run = [args.llama_python, str(PEERS / "run_llama_cpp.py"), model, "--threads", str(n)]
        peers["llama.cpp"] = lambda s: [*run, *s.flags()]
    return {
        name: peers[name] for name in peers if not args.only or name.startswith(tuple(args.only))
    }


def run_once(command: list[str], cores: str) -> dict[str, Any]:
    """Run one measurement pinned to `cores`; its last line is JSON."""
    done = subprocess.run(
        ["taskset", "-c", cores, *command], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def rates(scenario: Scenario, seconds: dict[str, Any]) -> float:
    """Tokens per second: prompt tokens if only prefill is timed, else decoded tokens."""
    if scenario.name == "prefill":
        return scenario.prompt * scenario.batch / float(seconds["prefill_s"])
    return scenario.new * scenario.batch / float(seconds["decode_s"])


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """All scenarios, all peers, `rounds` rounds in turn."""
    raw: dict[str, dict[str, list[dict[str, Any]]]] = {}
    chosen = [s for s in SCENARIOS if not args.scenarios or s.name in args.scenarios]
    with tempfile.TemporaryDirectory() as folder:
        peers = commands(args, Path(folder))
        for scenario in chosen:
            raw[scenario.name] = {name: [] for name in peers}
            for round_number in range(args.rounds):
                for name, command in peers.items():
                    result = run_once(command(scenario), args.cores)
                    raw[scenario.name][name].append(result)
                    rate = rates(scenario, result)
                    print(
                        f"{scenario.name} {round_number} {name}: {rate:.1f} tokens/s",
                        file=sys.stderr,
                    )
    return {
        "machine": machine_info(),
        "command": sys.argv,
        "shape": args.shape,
        "dtype": args.dtype,
        "cores": args.cores,
        "tokens_per_s": {
            s.name: {
                name: spread([rates(s, run) for run in runs]) for name, runs in raw[s.name].items()
            }
            for s in chosen
        },
        "ratio_of_first": {
            s.name: _paired_ratios(s, raw[s.name]) for s in chosen
        },
        "raw": raw,
    }  # fmt: skip


def _paired_ratios(scenario: Scenario, runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Median over rounds of (first peer's rate / this peer's rate)."""
    first, *others = runs
    return {
        other: statistics.median(
            rates(scenario, ours) / rates(scenario, theirs)
            for ours, theirs in zip(runs[first], runs[other], strict=True)
        )
        for other in others
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="mamba-130m", choices=sorted(SHAPES))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--cores", default="0", help="cores as taskset takes them, comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scenarios", nargs="*", choices=[s.name for s in SCENARIOS])
    parser.add_argument("--only", nargs="*", help="peers whose names start so")
    parser.add_argument(
        "--llama-python", help="a Python with llama-cpp-python, gguf and sidewinder"
    )
    parser.add_argument("--output", type=Path, help="also write the result here")
    args = parser.parse_args()
    result = compare(args)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
