"""`sidewinder bench collectives`: all-reduce by message size, by nccl-tests' definitions."""

import argparse
import sys
from typing import Any

from sidewinder.bench.collectives import bench_all_reduce
from sidewinder.cli.options import add_result_options, check_output, give_result
from sidewinder.collectives.quantised.policy import CODEC_NAMES, EXACT

DESCRIPTION = """\
Time all-reduces among fresh CPU ranks. algbw = bytes / time, busbw = algbw * 2(W-1)/W; the time of
a call is the slowest rank's; every size is checked for the right sum first; of a codec, the error
is reported by the parts' distribution. Over shared memory, what two bare spinning ranks show in
the same run stands beside it. Links between hosts: tools/bench_links.py."""

TRANSPORTS = ("shared memory", "tcp", "gloo")


def add_parser(kinds: Any) -> None:
    """Register the subcommand."""
    parser = kinds.add_parser(
        "collectives", help="all-reduce by message size", description=DESCRIPTION
    )
    parser.add_argument("--tp", type=int, default=2, metavar="N", help="ranks (2)")
    parser.add_argument("--transport", default=TRANSPORTS[0], choices=TRANSPORTS)
    parser.add_argument("--codec", default=EXACT, choices=CODEC_NAMES, help="of messages (exact)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--min-bytes", type=int, default=1 << 10, metavar="B")
    parser.add_argument("--max-bytes", type=int, default=1 << 24, metavar="B")
    parser.add_argument("--calls", type=int, default=1000, metavar="N", help="per size (1000)")
    add_result_options(parser)
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
    check_output(args)
    sizes = [args.min_bytes]
    while sizes[-1] * 2 <= args.max_bytes:
        sizes.append(sizes[-1] * 2)
    result = bench_all_reduce(
        args.tp, args.transport, sizes, args.dtype, args.calls, codec=args.codec
    )
    result["command"] = sys.argv
    give_result(args, result, _print)
    return 0


def _print(result: dict[str, Any]) -> None:
    ranks, transport = result["tp"], result["transport"]
    print(f"all-reduce, {ranks} ranks, {transport}, {result['dtype']}, {result['codec']}")
    print(
        f"{'bytes':>10} {'wire':>10} {'median us':>10} {'P99.9 us':>10} {'algbw GB/s':>11} "
        f"{'busbw GB/s':>11}"
    )
    for row in result["rows"]:
        print(
            f"{row['bytes']:>10} {row['wire_bytes']:>10} {row['median_us']:>10.1f} "
            f"{row['p999_us']:>10.1f} {row['algbw_gbps']:>11.2f} {row['busbw_gbps']:>11.2f}"
        )
    if result["sqnr_db"]:
        print("SQNR: " + ", ".join(f"{n} {db:.1f} dB" for n, db in result["sqnr_db"].items()))
    if "bare" in (last := result["rows"][-1]):
        print(
            f"bare exchange of flags at that pace: {last['bare']['median_us']:.2f} us median, "
            f"{last['bare']['p999_us']:.1f} us P99.9"
        )
