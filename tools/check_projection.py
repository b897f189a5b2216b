"""Report the projection's error: on a card's suite, or fitted to two CPU measurements on others.

    .venv/bin/python tools/check_projection.py --gpu-suite benchmarks/results/gpu-suite-GPU.json
    .venv/bin/python tools/check_projection.py RESULT.json ... --sums SUMS.json --output FILE

The first takes the suite's own efficiencies, and writes `projection-gpu.json` and its table in
docs/projection.md. RESULT is what `sidewinder bench latency SHAPE --output RESULT.json` wrote; the
first of one rank and the first of several are fitted, the others are predicted. SUMS holds
`all_reduce`, reports of `bench collectives`, for the link.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from card_tables import GPU_RESULT
from page_blocks import fill
from project_paper import TABLES

from sidewinder.projection.links import Link, fitted_link
from sidewinder.projection.measured import compare, fit
from sidewinder.projection.one_card import compare_suite, read_suite


def main() -> int:
    """Read, compare, print, write."""
    args = _arguments()
    try:
        report = card_report(args.gpu_suite) if args.gpu_suite else cpu_report(args)
    except ValueError as error:
        print(f"check_projection: {error}", file=sys.stderr)
        return 2
    output = args.output or GPU_RESULT
    output.write_text(json.dumps(report, indent=1) + "\n")
    for row in report["rows"]:
        print(card_line(row) if args.gpu_suite else line(row))
    if args.gpu_suite and output == GPU_RESULT:
        args.page.write_text(fill(args.page.read_text(), "gpu", TABLES["gpu"]()))
    return 0


def card_report(file: Path) -> dict[str, Any]:
    """The comparison with a card's suite, as data.

    Raises:
        ValueError: if the file is no suite of a known card, or holds nothing to compare with.
    """
    suite = read_suite(file)
    rows = compare_suite(suite)
    if not rows:
        raise ValueError(f"{file} has no measured model or shard; run 'end_to_end' and 'shards'")
    return {
        "what": "projection with a card's own efficiencies, error on its models and shards",
        "gpu": suite.gpu,
        "suite": suite.name,
        "calibration": suite.calibration.values(),
        "rows": rows,
    }


def cpu_report(args: argparse.Namespace) -> dict[str, Any]:
    """The comparison with CPU results, fitted to the first ones, as data."""
    results = [json.loads(file.read_text()) for file in args.results]
    link = measured_link(args.sums)
    calibration = fit(*fitted_results(results), link)
    return {
        "what": "projection fitted to the first results of one and of several ranks, error on all",
        "fitted": {name: getattr(calibration, name) for name in sorted(calibration.measured)},
        "link": {"exchange_us": link.exchange_s * 1e6, "gb_per_s": link.bytes_per_s / 1e9},
        "rows": compare(results, link, calibration),
        "results": results,
    }


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
    """One CPU result as a row of a table."""
    cells = [row["model"], str(row["tp"])]
    for name in ("ttft", "tpot"):
        cells += _figures(row[name])
    return "| " + " | ".join(cells) + " |"


def card_line(row: dict[str, Any]) -> str:
    """One figure of a card as a row of a table."""
    return "| " + " | ".join([row["model"], str(row["tp"]), row["what"], *_figures(row)]) + " |"


def _figures(part: dict[str, Any]) -> list[str]:
    """Measured and projected milliseconds, and the error."""
    milliseconds = [f"{1e3 * part[name]:.2f}" for name in ("measured_s", "projected_s")]
    return [*milliseconds, f"{100 * part['error']:+.0f} %"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT")
    parser.add_argument("--sums", type=Path, help="measured all-reduces")
    parser.add_argument("--gpu-suite", type=Path, metavar="FILE", help="a card's result instead")
    parser.add_argument("--output", type=Path, help="where the comparison goes")
    parser.add_argument("--page", type=Path, default=Path("docs/projection.md"))
    args = parser.parse_args()
    if args.gpu_suite and (args.results or args.sums):
        parser.error("--gpu-suite and CPU results are compared one at a time")
    if not args.gpu_suite and not (args.results and args.sums and args.output):
        parser.error("CPU results need --sums and --output; a card's result needs --gpu-suite")
    return args


if __name__ == "__main__":
    sys.exit(main())
