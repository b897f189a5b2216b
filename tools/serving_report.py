"""Writes the table of throughput in docs/serving.md from the raw results.

    .venv/bin/python tools/serving_report.py

A round in which other processes took more than a tenth of a core is left out, and counted.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from page_blocks import fill

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serving-throughput.json"
PAGE = ROOT / "docs" / "serving.md"
HEAD = """\
| model | tp | setting | load | offline | server | ratio: median, range | event loop | client | between events |
|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501
DISTURBED_CORES = 0.1

Row = dict[str, Any]


def disturbed(pass_: Row) -> bool:
    """Whether others took too much of the machine during a pass."""
    cores: float = pass_["processor_us_per_token"]["others"] * pass_["output_tokens_per_s"] / 1e6
    return cores > DISTURBED_CORES


def quiet(run: Row) -> list[Row]:
    """The rounds of a run that count."""
    return [
        each
        for each in run["rounds"]
        if not disturbed(each["offline"]) and not disturbed(each["server"])
    ]


def spread(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.0f} to {high:,.0f}"


def line(run: Row) -> str:
    """A run's line of the table."""
    load, rounds = run["load"], quiet(run)
    ratios = [100 * each["ratio"] for each in rounds]
    servers = [each["server"] for each in rounds]
    loop, client = (
        median(each["processor_us_per_token"][part] for each in servers)
        for part in ("main_thread", "client")
    )
    pause = median(each["itl_s"]["p50"] for each in servers)
    left_out = len(run["rounds"]) - len(rounds)
    cells = [
        f"{load['model']}, {load['dtype']}",
        str(load["tp"]),
        load["scheduling"],
        f"{load['requests']} requests, {load['batch']} slots, "
        f"{load['prompt_tokens']} + {load['output_tokens']} tokens",
        spread([each["offline"]["output_tokens_per_s"] for each in rounds]),
        spread([each["output_tokens_per_s"] for each in servers]),
        f"**{median(ratios):.0f} %**, {spread(ratios)}; {len(rounds)} rounds"
        + (f" ({left_out} disturbed)" if left_out else ""),
        f"{loop:.0f} µs",
        f"{client:.0f} µs",
        f"{1e3 * pause:.0f} ms",
    ]
    return "| " + " | ".join(cells) + " |\n"


def table(runs: Sequence[Row]) -> Iterator[str]:
    """All lines, the larger models first, `throughput` before `latency`."""
    yield HEAD

    def place(run: Row) -> tuple[bool, str, bool, int]:
        load = run["load"]
        small = "/" in load["model"]
        return small, load["dtype"], load["scheduling"] == "latency", load["tp"]

    yield from (line(run) for run in sorted(runs, key=place))


def main() -> None:
    """Run from the command line."""
    runs = json.loads(RESULTS.read_text())
    PAGE.write_text(fill(PAGE.read_text(), "throughput", "".join(table(runs)).splitlines()))


if __name__ == "__main__":
    main()
