"""Sidewinder beside transformers and llama.cpp: same shapes, cores and dtype, in one run.

Each is a process of its own on the same cores; they take turns, round by round, so that a machine
whose speed drifts is fair to all. llama.cpp needs the packages `llama-cpp-python` and `gguf`; name
the Python that has them (and torch and sidewinder) with --llama-python. The last line is JSON.

    python tools/bench_peers.py --shape mamba-130m --cores 0 --output peers.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tables.cases import Case, Entrant, Group, Row
from tables.measure import measure_group
from tables.start import Settings

from sidewinder.bench.machine import machine_info

LOADS = {
    "prefill": (512, 1, 1, "prefill_tokens_per_s"),
    "decode-1": (16, 32, 1, "decode_tokens_per_s"),
    "decode-16": (16, 32, 16, "decode_tokens_per_s"),
    "decode-32": (16, 32, 32, "decode_tokens_per_s"),
}
"""Scenario to prompt tokens, decode steps, sequences, and the figure that counts."""


def entrants_of(args: argparse.Namespace) -> tuple[Entrant, ...]:
    """Who takes part; Sidewinder first."""
    n = len(args.cores.split(","))
    threads = ("--threads", str(n))
    dtype = ("--dtype", args.dtype)
    everyone = [Entrant(f"sidewinder, {n} threads", "sidewinder", (*threads, *dtype))]
    if n > 1:
        ranks = ("--tp", str(n), "--threads", "1", *dtype)
        everyone.append(Entrant(f"sidewinder, tp={n}", "sidewinder", ranks))
    everyone.append(Entrant("transformers", "transformers", (*threads, *dtype)))
    if args.llama_python:
        everyone.append(Entrant("llama.cpp", "llama", (args.dtype,)))
    wanted = tuple(args.only or [""])
    return tuple(entrant for entrant in everyone if entrant.name.startswith(wanted))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """All chosen scenarios, everybody in turn."""
    entrants = entrants_of(args)
    first = entrants[0].name
    cases = []
    for name in args.scenarios or LOADS:
        prompt, new, batch, key = LOADS[name]
        rows = [Row(e.name, ((e.name, key),), unit="tokens/s") for e in entrants]
        rows += [
            Row(f"{first} over {e.name}", ((first, key),), ((e.name, key),)) for e in entrants[1:]
        ]
        cases.append(Case(name, prompt, new, batch, tuple(rows), args.rounds, budget_s=600))
    settings = Settings(args.work, args.llama_python, tuple(args.cores.split(",")), args.tiny)
    group = measure_group(Group(args.shape, on_all(entrants, settings), tuple(cases)), settings)
    return {"machine": machine_info(), "command": sys.argv, "dtype": args.dtype, **group}


def on_all(entrants: tuple[Entrant, ...], settings: Settings) -> tuple[Entrant, ...]:
    """The entrants on all cores of the settings."""
    everywhere = ",".join(str(index) for index in range(len(settings.cores)))
    return tuple(Entrant(e.name, e.kind, e.options, (everywhere,)) for e in entrants)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="mamba-130m", help="a shape, or a folder with one")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--cores", default="0", help="cores as taskset takes them, comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scenarios", nargs="*", choices=sorted(LOADS))
    parser.add_argument("--only", nargs="*", help="peers whose names start so")
    parser.add_argument("--llama-python", help="a Python with llama-cpp-python, gguf, sidewinder")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="model files")
    parser.add_argument("--tiny", action="store_true", help="tiny models: does it all work?")
    parser.add_argument("--output", type=Path, help="also write the result here")
    args = parser.parse_args()
    result = compare(args)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
