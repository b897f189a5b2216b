"""`sidewinder bench serve`: load on a running server, as its clients see it."""

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sidewinder.bench.machine import machine_info
from sidewinder.bench.serve import Objectives, bench_serve
from sidewinder.bench.serve_load import ServeLoad
from sidewinder.bench.serve_plot import plot
from sidewinder.cli.options import add_result_options, check_output, give_result
from sidewinder.writable import check_file

DESCRIPTION = """\
Send requests to a running server (ours, or another with OpenAI's completions) and report what the
clients saw: TTFT (to the first text), ITL (between two pieces of text), TPOT (mean per token after
the first), E2E, throughput, and goodput: requests per second that met all objectives. Prompts are
random token ids, of which a part may be shared, or those of a file like ShareGPT's. With --passes 2
the same requests come twice: the second pass finds what the first left in the server's cache."""

_LOAD_OPTIONS: list[tuple[str, type, str]] = [
    ("requests", int, "how many"),
    ("rate", float, "requests per second on average (default: as fast as --concurrency allows)"),
    ("burstiness", float, "1: Poisson arrivals; less: in bursts; more: evenly"),
    ("concurrency", int, "most requests at once (default: no limit)"),
    ("prompt_tokens", int, "length of synthetic prompts"),
    ("output_tokens", int, "tokens to generate; the most of them with --dataset"),
    ("prefix_tokens", int, "how many tokens of a synthetic prompt are shared"),
    ("prefixes", int, "how many different shared beginnings"),
    ("vocab_size", int, "token ids of synthetic prompts are below"),
    ("seed", int, "of prompts and arrivals; a new one is cold again"),
]


def add_parser(kinds: Any) -> None:
    """Register `bench serve`."""
    parser = kinds.add_parser(
        "serve",
        help="load on a running server: TTFT, ITL, TPOT, E2E, goodput",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", metavar="URL")
    parser.add_argument("--model", metavar="NAME", help="default: the server's first one")
    parser.add_argument("--api-key", metavar="KEY", help="or in SIDEWINDER_API_KEY")
    parser.add_argument("--dataset", type=Path, metavar="FILE", help="JSON like ShareGPT's")
    parser.add_argument("--passes", type=int, default=1, metavar="N", help="cold, then warm (1)")
    defaults = {field.name: field.default for field in fields(ServeLoad)}
    for name, kind, text in _LOAD_OPTIONS:
        default = defaults[name]
        shown = text if default is None else f"{text} ({default})"
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, default=default, metavar="X", help=shown)
    for name in ("ttft", "tpot", "e2e"):
        parser.add_argument(
            f"--slo-{name}-ms", type=float, metavar="MS", help=f"objective: most {name.upper()}"
        )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the distributions as SVG")
    add_result_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Send the load and print; returns 1 if a request failed."""
    load = ServeLoad(**{name: getattr(args, name) for name, _, _ in _LOAD_OPTIONS})
    if args.passes < 1:
        raise ValueError(f"--passes {args.passes} is not a count; use 1 or more")
    check_output(args)
    if args.plot:
        check_file(args.plot, "--plot")
        if args.plot.suffix != ".svg":
            raise ValueError(f"--plot {args.plot}: the plot is SVG; end the name in .svg")
    limits = [getattr(args, f"slo_{name}_ms") for name in ("ttft", "tpot", "e2e")]
    objectives = Objectives(*(None if limit is None else limit / 1e3 for limit in limits))
    result = asyncio.run(
        bench_serve(
            args.url,
            load,
            objectives,
            passes=args.passes,
            model=args.model,
            dataset=args.dataset,
            api_key=args.api_key or os.environ.get("SIDEWINDER_API_KEY"),
        )
    )
    result |= {
        "bench": "serve",
        "machine": machine_info(),
        "command": _without_key(sys.argv, args.api_key),
    }
    if args.plot:
        args.plot.write_text(plot(result), encoding="utf-8")
    del result["answers"]
    give_result(args, result, _print)
    return 1 if any(each["failed"] for each in result["passes"]) else 0


def _without_key(command: Sequence[str], key: str | None) -> list[str]:
    """Results are published; the key is not, however its option was written."""
    if not key:
        return list(command)
    return [re.sub(rf"(^|=){re.escape(key)}$", r"\1...", word) for word in command]


def _print(result: dict[str, Any]) -> None:
    for number, each in enumerate(result["passes"], 1):
        print(
            f"pass {number}: {each['requests']} requests in {each['duration_s']:.2f} s, "
            f"{each['failed']} failed, at most {each['peak_concurrency']} at once; "
            f"{each['requests_per_s']:.2f} requests/s, goodput "
            f"{each['goodput_requests_per_s']:.2f}/s, {each['output_tokens_per_s']:.1f} output and "
            f"{each['total_tokens_per_s']:.1f} tokens/s; {each['cached_tokens']} of "
            f"{each['prompt_tokens']} prompt tokens from the cache"
        )
        for error in each["errors"]:
            print(f"  error: {error}")
        for name in ("ttft", "tpot", "itl", "e2e"):
            if (found := each[f"{name}_s"]) is not None:
                shown = ", ".join(
                    f"{p} {1e3 * found[p]:.2f}" for p in ("mean", "p50", "p90", "p99")
                )
                print(f"  {name.upper():<4} ms: {shown}")
