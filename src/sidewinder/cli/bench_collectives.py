"""`sidewinder bench collectives`: all-reduce by message size, by nccl-tests' definitions."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sidewinder.bench.collectives import bench_all_reduce
from sidewinder.cli.options import add_json_option, print_json

DESCRIPTION = """\
Time all-reduces among fresh CPU ranks. algbw = bytes / time, busbw = algbw * 2(W-1)/W; the time of
a call is the slowest rank's; every size is checked for the right sum first. Over shared memory,
what two bare spinning ranks show in the same run stands beside it."""

TRANSPORTS = ("shared memory", "gloo")


def add_parser(kinds: Any) -> None:
    """Register the subcommand."""
    parser = kinds.add_parser(
        "collectives", help="all-reduce by message size", description=DESCRIPTION
    )
    parser.add_argument("--tp", type=int, default=2, metavar="N", help="ranks (2)")
    parser.add_argument("--transport", default=TRANSPORTS[0], choices=TRANSPORTS)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--min-bytes", type=int, default=1 << 10, metavar="B")
    parser.add_argument("--max-bytes", type=int, default=1 << 24, metavar="B")
    parser.add_argument("--calls", type=int, default=1000, metavar="N", help="per size (1000)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the raw result here, too"
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit status."""
    if args.tp < 2:
        raise ValueError(f"--tp {args.tp} has nothing to exchange; use 2 or more")
    if args.calls < 1:
        raise ValueError(f"--calls {args.calls} is not a count; use 1 or more")
    if not 0 < args.min_bytes <= args.max_bytes:
        raise ValueError(
            f"--min-bytes {args.min_bytes} and --max-bytes {args.max_bytes} hold no size; "
            "use 0 < min <= max"
        )
    sizes = [args.min_bytes]
    while sizes[-1] * 2 <= args.max_bytes:
        sizes.append(sizes[-1] * 2)
    result = bench_all_reduce(args.tp, args.transport, sizes, args.dtype, args.calls)
    result["command"] = sys.argv
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    if args.json:
        print_json(result)
    else:
        _print(result)
    return 0


def _print(result: dict[str, Any]) -> None:
    print(f"all-reduce, {result['tp']} ranks, {result['transport']}, {result['dtype']}")
    print(f"{'bytes':>10} {'median us':>10} {'P99.9 us':>10} {'algbw GB/s':>11} {'busbw GB/s':>11}")
    for row in result["rows"]:
        print(
            f"{row['bytes']:>10} {row['median_us']:>10.1f} {row['p999_us']:>10.1f} "
            f"{row['algbw_gbps']:>11.2f} {row['busbw_gbps']:>11.2f}"
        )
    if (floor := result["bare_exchange"]) is not None:
        print(f"bare exchange of two flags: {floor['median_us']:.2f} us median, "
              f"{floor['p999_us']:.1f} us P99.9")  # fmt: skip
