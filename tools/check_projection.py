"""Fit the projection to two CPU measurements and report its error on others.

    .venv/bin/python tools/check_projection.py RESULT.json ... --sums SUMS.json --output FILE

RESULT is what `sidewinder bench latency SHAPE --output RESULT.json` wrote; the first of one rank
and the first of several are fitted, the others are predicted. SUMS holds `all_reduce`, reports of
`bench collectives`, for the link.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from sidewinder.projection.links import Link, fitted_link
from sidewinder.projection.measured import compare, fit


def main() -> None:
    """Read, fit, print, write."""
    parser = argparse.ArgumentParser(description="Error of the projection on measured results.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT")
    parser.add_argument("--sums", type=Path, required=True, help="measured all-reduces")
    parser.add_argument("--output", type=Path, required=True, help="where the comparison goes")
    args = parser.parse_args()
    results = [json.loads(file.read_text()) for file in args.results]
    link = measured_link(args.sums)
    calibration = fit(*fitted_results(results), link)
    rows = compare(results, link, calibration)
    report = {
        "what": "projection fitted to the first results of one and of several ranks, error on all",
        "fitted": {name: getattr(calibration, name) for name in sorted(calibration.measured)},
        "link": {"exchange_us": link.exchange_s * 1e6, "gb_per_s": link.bytes_per_s / 1e9},
        "rows": rows,
        "results": results,
    }
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        print(line(row))


def fitted_results(results: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The first result of one rank, and the first of several."""
    single = next(each for each in results if each["engine"]["tp"] == 1)
    return single, next((each for each in results if each["engine"]["tp"] > 1), None)


def measured_link(file: Path) -> Link:
    """The shared-memory link of a file of measured sums."""
    reports = json.loads(file.read_text())["all_reduce"]
    report = next(each for each in reports if each["transport"] == "shared memory")
    return fitted_link("shared memory", report["tp"], report["rows"], str(file))


def line(row: dict[str, Any]) -> str:
    """One result as a row of a table."""
    cells = [row["model"], str(row["tp"])]
    for name in ("ttft", "tpot"):
        part = row[name]
        cells += [
            f"{1e3 * part['measured_s']:.1f}",
            f"{1e3 * part['projected_s']:.1f}",
            f"{100 * part['error']:+.0f} %",
        ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
