"""Write a card's figures into docs/gpu.md and docs/kernels.md, from its suite's JSON.

    .venv/bin/python tools/suite_tables.py benchmarks/results/gpu-suite-....json

Tables go between `<!-- begin NAME -->` and `<!-- end NAME -->`; nothing else of the pages changes.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from page_blocks import fill

Suite = dict[str, Any]
Row = dict[str, Any]

OPERATORS = (
    "1 row by",
    "32 rows by",
    "8192 rows by",
    "causal_conv1d",
    "selective_scan",
    "projected_scan",
    "ssd_scan",
    "rms_norm",
    "concat_rms_norm",
    "gated_rms_norm",
    "gated_activation",
    "rotary",
    "store_kv",
    "paged_attention",
    "prompt_attention",
)
"""Of the kernels' rows, those that the table shows for each model; codecs are shown, too."""


def targets(suite: Suite) -> Iterator[str]:
    """What was asked for, and what the card did."""
    yield "| target | reached | |"
    yield "|---|---|---|"
    for row in suite["verdicts"]:
        if row["met"] is None:
            continue
        value = f"{row['value']:.3g}" if isinstance(row["value"], float) else row["value"]
        yield f"| {row['what']}: {row['target']} | {value} | {'met' if row['met'] else 'missed'} |"


def models(suite: Suite) -> Iterator[str]:
    """The engine on one rank, beside its floors and transformers."""
    theirs = {
        row["model"]: row for row in suite["sections"].get("transformers", {}).get("rows", [])
    }
    yield (
        "| model | prefill of 8,192, ms | of torch's matrix rate | TPOT, ms | of the bandwidth "
        "| kernels that wait, ms | graphs off, ms | transformers, ms | batch 32, TPOT, ms "
        "| prefill of 256, ms | graphs off, ms |"
    )
    yield f"|{'---|' * 11}"
    for row in suite["sections"]["end_to_end"]["rows"]:
        if "latency, graphs auto" not in row:
            continue
        latency = row["latency, graphs auto"]
        cells = [
            row["model"],
            milliseconds(latency["prefill_s"]),
            f"{row['prefill_percent']:.0f} %",
            milliseconds(latency["tpot_s"]),
            f"{row['decode_percent']:.0f} %",
            milliseconds(row.get("latency, kernels that wait", {}).get("tpot_s")),
            milliseconds(row.get("latency, graphs off", {}).get("tpot_s")),
            milliseconds(theirs.get(row["model"], {}).get("tpot_s")),
            milliseconds(row.get("batch 32, graphs auto", {}).get("tpot_s")),
            milliseconds(row.get("short prompt, graphs auto", {}).get("prefill_s")),
            milliseconds(row.get("short prompt, graphs off", {}).get("prefill_s")),
        ]
        yield f"| {' | '.join(cells)} |"


def milliseconds(measured: Row | float | None) -> str:
    """A median, or a plain figure."""
    if measured is None:
        return "not measured"
    seconds = measured["median"] if isinstance(measured, dict) else measured
    return f"{1e3 * seconds:.4g}"


def kernels(suite: Suite) -> Iterator[str]:
    """Every operator's time and part of its floor, with default and with tuned block sizes."""
    yield "| model | operator | µs | of its floor | tuned, µs | of its floor |"
    yield "|---|---|---|---|---|---|"
    for row in suite["sections"]["kernels"]["rows"]:
        if "seconds" not in row:
            continue
        shown = row["model"] == "any" or row["case"].startswith(OPERATORS)
        if row["kind"] == "peer":
            yield f"| {row['model']} | {row['case']} | {1e6 * row['seconds']:.1f} | | | |"
        elif shown:
            cells = [row["model"], row["case"], *timed(row, ""), *timed(row, "tuned_")]
            yield f"| {' | '.join(cells)} |"


def timed(row: Row, prefix: str) -> tuple[str, str]:
    """Microseconds and percent, empty where there are none."""
    seconds, percent = (row.get(f"{prefix}{name}") for name in ("seconds", "percent_of_floor"))
    if seconds is None or percent is None:
        return "", ""
    return f"{1e6 * seconds:.1f}", f"{percent:.0f} %"


PAGES: dict[str, dict[str, Callable[[Suite], Iterator[str]]]] = {
    "gpu.md": {"targets": targets, "models": models},
    "kernels.md": {"card": kernels},
}


def main() -> None:
    """Fill the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", type=Path, help="what tools/gpu_suite.py wrote on a card")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    suite = json.loads(args.suite.read_text())
    for name, tables in PAGES.items():
        page = (args.docs / name).read_text()
        for block, rows in tables.items():
            page = fill(page, block, rows(suite))
        (args.docs / name).write_text(page)


if __name__ == "__main__":
    main()
