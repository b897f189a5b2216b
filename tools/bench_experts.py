"""Time a layer's experts on one core: one native call, and one product from Python per matrix.

    tools/bench_experts.py measure     (a minute; benchmarks/results/experts.json)
    tools/bench_experts.py report      (the table of docs/kernels.md)

Sizes are granite-4.0-h-tiny's. Rows choose experts at random, others in every round. Both ways get
the same rows, in turn; who begins changes from round to round. Each starts with cold caches, as
other layers' weights leave them in a step. Times are CPU time, which other work on the machine
disturbs less than the clock.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from page_blocks import fill
from torch import Tensor

from sidewinder.bench.machine import machine_info
from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.ops import native, native_linear
from sidewinder.ops.experts import grouped
from sidewinder.ops.experts.matrices import ExpertMatrices
from sidewinder.packing import pack
from sidewinder.quantise import quantise

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "experts.json"
PAGE = ROOT / "docs" / "kernels.md"

SHAPE = "granite-4.0-h-tiny"
GROUP_SIZE = 64
ROWS = (1, 8, 64, 512)
ROUNDS = 9
EVICTED_BYTES = 256 << 20

WAYS: dict[str, Callable[..., Tensor]] = {
    "one call": native_linear.experts,
    "matrix by matrix": grouped.experts,
}

Row = dict[str, Any]


def sizes() -> dict[str, int]:
    """Of a layer."""
    config = parse_model_config(SHAPES[SHAPE])
    experts = config.experts
    assert experts is not None
    return {
        "experts": experts.n_experts,
        "chosen": experts.router.n_chosen,
        "width": config.d_model,
        "inner": experts.d_ff,
    }


def layer(format_: str, n: int, width: int, inner: int) -> tuple[ExpertMatrices, int]:
    """Random matrices, packed where this processor has a kernel for that; an expert's bytes."""
    packed_bits = native_linear.packed_bits(torch.device("cpu"))

    def made(outputs: int, inputs: int) -> tuple[Any, int]:
        plain = torch.randn(outputs, inputs).to(torch.bfloat16)
        weight = plain if format_ == "bfloat16" else quantise(plain.float(), GROUP_SIZE)
        packs = (16 if format_ == "bfloat16" else 8) in packed_bits
        return pack(weight) if packs else weight, weight.nbytes

    parts = [[made(*shape) for _ in range(n)] for shape in ((inner, width),) * 2]
    parts.append([made(width, inner) for _ in range(n)])
    gate, up, down = (tuple(weight for weight, _ in part) for part in parts)
    return ExpertMatrices(gate, up, down), sum(part[0][1] for part in parts)


def rows_of(format_: str, size: dict[str, int], junk: Tensor) -> Iterator[Row]:
    """Both ways at every number of rows."""
    n, k = size["experts"], size["chosen"]
    matrices, expert_bytes = layer(format_, n, size["width"], size["inner"])
    for rows in ROWS:
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        moved = []
        for number in range(-1, ROUNDS):  # The first warms up.
            x = torch.randn(rows, size["width"]).to(torch.bfloat16)
            shares, chosen = torch.rand(rows, n).topk(k)
            order = list(WAYS)[:: 1 if number % 2 else -1]
            for way in order:
                junk.sum()
                started = time.process_time()
                WAYS[way](x, matrices, chosen.int(), shares, "silu")
                if number >= 0:
                    seconds[way].append(time.process_time() - started)
            if number >= 0:
                moved.append(len(chosen.unique()) * expert_bytes)
        yield row_of(format_, rows, seconds, moved)


def row_of(format_: str, rows: int, seconds: dict[str, list[float]], moved: list[int]) -> Row:
    """One line: milliseconds of a layer, their ratio round by round, and bytes of matrices."""
    one, each = seconds.values()
    ratios = sorted(b / a for a, b in zip(one, each, strict=True))
    rates = [n_bytes / s / 1e9 for n_bytes, s in zip(moved, one, strict=True)]
    row: Row = {"format": format_, "rows": rows}
    row["ms"] = {way: statistics.median(own) * 1e3 for way, own in seconds.items()}
    row["ms_range"] = {way: [min(own) * 1e3, max(own) * 1e3] for way, own in seconds.items()}
    row["times_as_fast"] = statistics.median(ratios)
    row["times_as_fast_range"] = [ratios[0], ratios[-1]]
    row["gb_per_s"] = statistics.median(rates)
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def measure() -> Row:
    """All of it, JSON-able."""
    torch.set_num_threads(1)
    native.set_threads(1)
    torch.manual_seed(0)
    size, junk = sizes(), torch.ones(EVICTED_BYTES // 4)
    head = {"what": "a layer's experts on one core, CPU time", "command": " ".join(sys.argv)}
    head |= {"machine": machine_info(), "isa": native.isa(), "shape": SHAPE, "rounds": ROUNDS}
    with torch.inference_mode():
        found = [row for kind in ("bfloat16", "int8") for row in rows_of(kind, size, junk)]
    return head | size | {"layers": found}


def table(result: Row) -> Iterator[str]:
    """The result as lines of Markdown."""
    machine = result["machine"]
    yield (
        f"{machine['cpu']}, one core, level `{result['isa']}`, load {machine['load_1min']:.1f}, "
        f"commit {machine['commit']}, {machine['date'][:16]}; {result['experts']} experts of "
        f"{result['width']} and {result['inner']} channels, {result['chosen']} for a row; "
        f"CPU time, medians of {result['rounds']} rounds."
    )
    yield ""
    yield (
        "| weights | rows | one call, ms | range | matrix by matrix, ms | times as fast | range "
        "| GB/s |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for row in result["layers"]:
        one, each = row["ms"].values()
        low, high = next(iter(row["ms_range"].values()))
        least, most = row["times_as_fast_range"]
        yield (
            f"| {row['format']} | {row['rows']} | {one:.2f} | {low:.2f} to {high:.2f} | {each:.2f} "
            f"| {row['times_as_fast']:.2f} | {least:.2f} to {most:.2f} | {row['gb_per_s']:.1f} |"
        )


def report() -> None:
    """Write the table into the page."""
    PAGE.write_text(fill(PAGE.read_text(), "experts", table(json.loads(RESULTS.read_text()))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("measure", "report"))
    if parser.parse_args().what == "report":
        report()
    else:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")


if __name__ == "__main__":
    main()
