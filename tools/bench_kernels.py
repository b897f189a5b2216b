"""Time single kernels of a decode step on one core, without Python between them.

    tools/bench_kernels.py measure          (minutes on one quiet core; kernels.json)
    tools/bench_kernels.py measure-panels   (products, packed and not; kernels-panels.json)
    tools/bench_kernels.py report           (the tables of docs/kernels.md)

Results are in benchmarks/results. Sizes are mamba-790m's. A kernel's calls, each with weights and
state of its own, are recorded and made again after everything was driven out of the caches, as
other layers' weights do in a step: so times are of memory and arithmetic, not of Python. torch's
products are called from Python in turn.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from page_blocks import fill
from torch import Tensor

from sidewinder.bench.machine import machine_info
from sidewinder.layers.weights import Weight
from sidewinder.memory import empty
from sidewinder.ops import native, native_linear
from sidewinder.ops.workspace import Workspace, results_in
from sidewinder.packing import pack as pack_weight
from sidewinder.quantise import BITS, quantise
from sidewinder.state import batch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "kernels.json"
PANELS = ROOT / "benchmarks" / "results" / "kernels-panels.json"
PAGE = ROOT / "docs" / "kernels.md"

D_MODEL, D_INNER, D_STATE, D_CONV = 1536, 3072, 16, 4
LAYERS = 24
ROUNDS = 7
EVICTED_BYTES = 256 << 20
LINEAR_ROWS = (1, 4, 8, 16, 32, 512)
STEP_ROWS = (1, 4, 16, 32)

Row = dict[str, Any]
Call = Callable[[], Any]


def recorded(calls: Sequence[Call]) -> Call:
    """Native calls as one that makes all of them again without Python."""
    recording = native.new_recording()
    with results_in(Workspace()) as workspace:
        recording.begin()
        try:
            for call in calls:
                call()
        finally:
            recording.end()

    def replay(_memory: Any = workspace) -> None:
        recording.replay()

    return replay


def in_turn(calls: Sequence[Call]) -> Call:
    """The calls one after another, from Python."""

    def run() -> None:
        for call in calls:
            call()

    return run


def seconds_of(run: Call, junk: Tensor) -> list[float]:
    """Seconds of `ROUNDS` runs, each with cold caches, after one to warm up."""
    found = []
    for _ in range(ROUNDS + 1):
        junk.sum()
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return found[1:]


def row_of(kernel: str, rows: int, run: Call, junk: Tensor, flops: int, n_bytes: int) -> Row:
    """One kernel's line: microseconds of a call, and what they mean."""
    times = sorted(second / LAYERS for second in seconds_of(run, junk))
    median = statistics.median(times)
    row = {"kernel": kernel, "rows": rows, "us": median * 1e6}
    row |= {"us_range": [times[0] * 1e6, times[-1] * 1e6], "gb_per_s": n_bytes / median / 1e9}
    row |= {"gflop_per_s": flops / median / 1e9} if flops else {}
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


IN_ROWS = ", in rows"
"""Ends the name of a format that is packed otherwise."""


def linear_rows(junk: Tensor, in_rows: bool = False) -> Iterator[Row]:
    """in_proj `[2 d_inner, d_model]` in every format; with `in_rows` also before packing."""
    outputs = 2 * D_INNER
    plain = [torch.randn(outputs, D_MODEL).to(torch.bfloat16) for _ in range(LAYERS)]
    packed_bits = native_linear.packed_bits(torch.device("cpu"))
    formats: dict[str, Sequence[Weight]] = {}
    for name, bits in {"bfloat16": 16, **BITS}.items():
        weights = plain if bits == 16 else [quantise(weight, bits=bits) for weight in plain]
        packs = bits in packed_bits
        if packs and in_rows:
            formats[f"linear, {name}{IN_ROWS}"] = weights
        formats[f"linear, {name}"] = [pack_weight(each) for each in weights] if packs else weights
    n_bytes = plain[0].nbytes
    for rows in LINEAR_ROWS:
        x = torch.randn(rows, D_MODEL).to(torch.bfloat16)
        flops = 2 * rows * outputs * D_MODEL
        for name, weights in formats.items():
            calls = [partial(native_linear.linear, x, weight) for weight in weights]
            yield row_of(name, rows, recorded(calls), junk, flops, weights[0].nbytes)
        calls = [partial(torch.nn.functional.linear, x, weight) for weight in plain]
        yield row_of("linear, bfloat16, torch", rows, in_turn(calls), junk, flops, n_bytes)


def step_rows(junk: Tensor) -> Iterator[Row]:
    """The kernels of single tokens that are not products."""
    slots = max(STEP_ROWS)
    states = empty((LAYERS, slots, D_STATE, D_INNER), torch.float32).zero_()
    inputs = empty((LAYERS, slots, D_CONV - 1, D_INNER), torch.bfloat16).zero_()
    rates = [-torch.rand(D_STATE, D_INNER) - 0.5 for _ in range(LAYERS)]
    taps = [torch.randn(D_CONV, D_INNER).to(torch.bfloat16) for _ in range(LAYERS)]
    vectors = [torch.randn(D_INNER) for _ in range(LAYERS)]
    norms = [torch.randn(D_MODEL).to(torch.bfloat16) for _ in range(LAYERS)]
    for rows in STEP_ROWS:
        seqs = batch.pack([[1]] * rows, list(range(rows)), [1] * rows).seqs
        x_z = torch.randn(rows, 2 * D_INNER).to(torch.bfloat16)
        x, z, dt = x_z[:, :D_INNER], x_z[:, D_INNER:], torch.randn(rows, D_INNER).to(torch.bfloat16)
        b_c = torch.randn(rows, 2 * D_STATE).to(torch.bfloat16)
        B, C = b_c[:, :D_STATE], b_c[:, D_STATE:]
        delta, residual = torch.randn(rows, D_MODEL).to(torch.bfloat16), torch.randn(rows, D_MODEL)
        scans = [
            partial(native.selective_scan, x, dt, A, B, C, vector, z, vector, state, seqs)
            for A, vector, state in zip(rates, vectors, states, strict=True)
        ]
        scan_bytes = rates[0].nbytes + 2 * rows * states[0, 0].nbytes
        yield row_of("selective scan", rows, recorded(scans), junk, 0, scan_bytes)
        convolutions = [
            partial(native.causal_conv1d, x, weight, None, state, seqs)
            for weight, state in zip(taps, inputs, strict=True)
        ]
        conv_bytes = taps[0].nbytes + 2 * rows * inputs[0, 0].nbytes
        yield row_of("convolution", rows, recorded(convolutions), junk, 0, conv_bytes)
        adds = [partial(native.rms_norm, delta, weight, 1e-5, residual) for weight in norms]
        norm_bytes = 2 * (delta.nbytes + residual.nbytes) + norms[0].nbytes
        yield row_of("RMS norm with residual", rows, recorded(adds), junk, 0, norm_bytes)


def measure(kernels: Callable[[Tensor], Iterator[Row]]) -> Row:
    """Some kernels, JSON-able."""
    torch.set_num_threads(1)
    native.set_threads(1)
    torch.manual_seed(0)
    head = {"what": "single kernels on one core", "machine": machine_info(), "isa": native.isa()}
    head |= {"layers": LAYERS, "rounds": ROUNDS}
    junk = torch.ones(EVICTED_BYTES // 4)
    with torch.inference_mode():
        return head | {"kernels": [*kernels(junk)]}


def all_rows(junk: Tensor) -> Iterator[Row]:
    """Every kernel of a step."""
    yield from linear_rows(junk)
    yield from step_rows(junk)


def provenance(result: Row) -> str:
    """Where and when."""
    machine = result["machine"]
    return (
        f"{machine['cpu']}, one core, level `{result['isa']}`, commit {machine['commit']}, "
        f"{machine['date'][:16]}; medians of {result['rounds']} rounds.\n\n"
    )


def table(result: Row) -> Iterator[str]:
    """The result as lines of Markdown."""
    yield provenance(result)
    yield "| kernel | rows | µs | range | GB/s | GFLOP/s |\n|---|---|---|---|---|---|\n"
    for row in result["kernels"]:
        low, high = row["us_range"]
        flops = f"{row['gflop_per_s']:.0f}" if "gflop_per_s" in row else ""
        yield (
            f"| {row['kernel']} | {row['rows']} | {row['us']:.1f} | {low:.1f} to {high:.1f} "
            f"| {row['gb_per_s']:.1f} | {flops} |\n"
        )


def panel_table(result: Row) -> Iterator[str]:
    """Products in rows and in panels, as lines of Markdown: milliseconds, and rows over panels."""
    yield provenance(result)
    times = {(row["kernel"], row["rows"]): row["us"] / 1e3 for row in result["kernels"]}
    names = list(dict.fromkeys(row["kernel"] for row in result["kernels"]))
    packed = [name.removesuffix(IN_ROWS) for name in names if name.endswith(IN_ROWS)]
    alone = [name for name in names if name not in packed and not name.endswith(IN_ROWS)]
    columns = [f"{name}{IN_ROWS} | in panels | rows over panels" for name in packed]
    titles = " | ".join(each.removeprefix("linear, ") for each in [*columns, *alone])
    yield f"| rows of x | {titles} |\n|{'---|' * (1 + 3 * len(packed) + len(alone))}\n"
    for rows in dict.fromkeys(row["rows"] for row in result["kernels"]):
        cells = [f"{rows}"]
        for name in packed:
            before, after = times[name + IN_ROWS, rows], times[name, rows]
            cells += [f"{before:.3g}", f"{after:.3g}", f"{before / after:.2f}"]
        cells += [f"{times[name, rows]:.3g}" for name in alone]
        yield f"| {' | '.join(cells)} |\n"


def report() -> None:
    """Write the tables into the page."""
    page = PAGE.read_text()
    for name, lines, path in (
        ("single kernels", table, RESULTS), ("panels", panel_table, PANELS),
    ):  # fmt: skip
        page = fill(page, name, "".join(lines(json.loads(path.read_text()))).splitlines())
    PAGE.write_text(page)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("measure", "measure-panels", "report"))
    what = parser.parse_args().what
    if what == "report":
        report()
    elif what == "measure":
        RESULTS.write_text(json.dumps(measure(all_rows), indent=1) + "\n")
    else:
        panels = measure(partial(linear_rows, in_rows=True))
        PANELS.write_text(json.dumps(panels, indent=1) + "\n")


if __name__ == "__main__":
    main()
