"""Whether codecs pay between ranks of one machine: by message size, and in a whole engine.

    tools/bench_transports.py measure     (about three minutes; needs two quiet cores)
    tools/bench_transports.py report

`measure` writes `benchmarks/results/all-reduce-codecs.json`: all-reduces by size, transport (shared
memory, TCP over the loopback) and codec, with each codec's SQNR by distribution, and a throughput
run of an engine for every way to sum. `report` writes the tables of docs/quantised-all-reduce.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from page_blocks import fill

from sidewinder.bench.collectives import bench_all_reduce
from sidewinder.bench.machine import machine_info
from sidewinder.parallel.protocol import Transport

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "all-reduce-codecs.json"
PAGE = ROOT / "docs" / "quantised-all-reduce.md"
TRANSPORTS: tuple[Transport, ...] = ("shared memory", "tcp")
CODECS = ("exact", "int8", "int6", "int4")
SIZES = tuple(1024 << step for step in range(16))
CALLS = 300
MODEL = "mamba-130m"
WAYS = (("exact", "none"), ("int8", "none"), ("int4", "none"), ("exact", "both"), ("exact", "none"))
"""Codec and what is hidden, of the engine; the plain one comes first and last."""

Row = dict[str, Any]


def measure() -> Row:
    """All of it, JSON-able."""
    report = {"what": "codecs between ranks of one machine", "machine": machine_info()}
    messages = [
        bench_all_reduce(2, transport, SIZES, calls=CALLS, codec=codec)
        for transport in TRANSPORTS
        for codec in CODECS
    ]
    return report | {"messages": messages, "engines": [_engine(*way) for way in WAYS]}


def _engine(codec: str, overlap: str) -> Row:
    """`sidewinder bench throughput` over shared memory."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        options = ["--tp", "2", "--all-reduce", codec, "--overlap", overlap, "--repeats", "2"]
        options += ["--state-cache-bytes", "0", "--no-ceilings", "--output", str(output)]
        command = [str(Path(sys.executable).with_name("sidewinder")), "bench", "throughput", MODEL]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
        found: Row = json.loads(output.read_text())
    return {"codec": codec, "overlap": overlap} | found


def messages_table(report: Row) -> Iterator[str]:
    """Microseconds and bus bandwidth of every size."""
    runs = {(run["transport"], run["codec"]): run for run in report["messages"]}
    yield "| bytes of activations | " + " | ".join(f"{t}, {c}" for t, c in runs) + " |\n"
    yield "|---|" + "---|" * len(runs) + "\n"
    for index, row in enumerate(next(iter(runs.values()))["rows"]):
        cells = [run["rows"][index] for run in runs.values()]
        text = " | ".join(f"{c['median_us']:,.0f} µs, {c['busbw_gbps']:.2f}" for c in cells)
        yield f"| {row['bytes']:,} | {text} |\n"


def sqnr_table(report: Row) -> Iterator[str]:
    """Decibels by distribution, of one transport: all have the same bits."""
    runs = [run for run in report["messages"] if run["transport"] == "tcp" and run["sqnr_db"]]
    names = list(runs[0]["sqnr_db"])
    yield "| codec | " + " | ".join(names) + " |\n|---|" + "---|" * len(names) + "\n"
    for run in runs:
        cells = " | ".join(f"{run['sqnr_db'][name]:.1f} dB" for name in names)
        yield f"| {run['codec']} | {cells} |\n"


def engines_table(report: Row) -> Iterator[str]:
    """Seconds of the whole load, medians."""
    yield "| sums | hidden | prefill | whole load |\n|---|---|---|---|\n"
    for run in report["engines"]:
        prefill, total = run["prefill_s"]["median"], run["total_s"]["median"]
        yield f"| {run['codec']} | {run['overlap']} | {prefill:.2f} s | {total:.2f} s |\n"


def write_page(report: Row) -> None:
    """Write the tables into the page."""
    text = "".join([
        "**Messages** between two ranks: median, and bus bandwidth in GB/s of activations.\n\n",
        *messages_table(report), "\n**Error** of a sum over two ranks, by distribution of its "
        "terms (of \"outliers\", every 128th channel is 50 times as large and is not "
        "counted).\n\n", *sqnr_table(report),
        f"\n**An engine** over shared memory: {MODEL}, batch 16, prompt 512, 64 new tokens.\n\n",
        *engines_table(report),
    ])  # fmt: skip
    PAGE.write_text(fill(PAGE.read_text(), "transports", text.splitlines()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["measure", "report"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.what == "measure":
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(measure(), indent=1) + "\n")
    else:
        write_page(json.loads(args.results.read_text()))


if __name__ == "__main__":
    main()
