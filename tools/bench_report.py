"""Writes docs/benchmarks.md and its plots from the raw results of `make bench`.

    python tools/bench_report.py [--results FOLDER] [--docs FOLDER]

Every figure in the page comes from a JSON file; a section without one says so. Targets stand beside
what was reached. Plots need matplotlib (the `bench` extra) and are left out without it.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tables.cases import Case, Row, Section
from tables.sections import ALL_REDUCE, SECTIONS

ROOT = Path(__file__).resolve().parents[1]
Result = dict[str, Any]

HEAD = """\
# Benchmarks

Written by `tools/bench_report.py` from `benchmarks/results/*.json`; do not edit. `make bench`
measures all sections (`make bench ONLY=decode-b1` one of them) and writes this page again. Models
have published shapes and random weights. Entrants take turns, round by round; a ratio divides what
ran in the same round, and its median and range over the rounds are shown.
"""

ALL_REDUCE_TARGETS = {8 << 10: 10.0, 512 << 10: 120.0}
"""Bytes to the median in microseconds that is aimed at."""
P999_TARGET_US = 1000.0


def page(results: dict[str, Result], plots: Sequence[str]) -> str:
    """The whole page."""
    parts = [HEAD, *(f"![{name}](plots/{name}.svg)\n" for name in plots)]
    for section in SECTIONS:
        parts.append(f"## {section.title}\n\n{section.about}\n")
        result = results.get(section.name)
        if section is ALL_REDUCE:
            parts.append("\n".join(all_reduce_table(result)) + "\n")
        else:
            parts += group_tables(section, result)
        parts.append(provenance(section, result))
    return "\n".join(parts)


def group_tables(section: Section, result: Result | None) -> Iterator[str]:
    """A table per group of entrants; without a result, its targets."""
    for index, group in enumerate(section.groups):
        measured = None if result is None else result["groups"][index]
        lines = [f"**{group.shape}**", ""] if len(section.groups) > 1 else []
        lines += ["| load | figure | reached | range | target |", "|---|---|---|---|---|"]
        for number, case in enumerate(group.cases):
            reached = None if measured is None else measured["cases"][number]
            if reached is None:
                lines += missing_rows(case)
            else:
                lines += [reached_row(case.name, row) for row in reached["rows"]]
        yield "\n".join(lines) + "\n"


def missing_rows(case: Case) -> list[str]:
    """The targets of a case that has not run; one line if it has none."""
    targets = [missing_row(case.name, row) for row in case.rows if row.target is not None]
    return targets or [f"| {case.name} | | not measured yet | | |"]


def missing_row(load: str, row: Row) -> str:
    """A target that nothing was measured for."""
    return (
        f"| {load} | {row.label} | not measured yet | | {target_text(row.target, row.at_least)} |"
    )


def reached_row(load: str, row: dict[str, Any]) -> str:
    """A figure beside its target."""
    value = f"{number(row['median'])} {row['unit']}"
    target = target_text(row["target"], row["at_least"])
    if row["target"] is not None:
        met = row["median"] >= row["target"] if row["at_least"] else row["median"] <= row["target"]
        target += ": met" if met else ": **not met**"
    return (
        f"| {load} | {row['label']} | {value} | {number(row['min'])} to {number(row['max'])}, "
        f"{row['rounds']} rounds | {target} |"
    )


def target_text(target: float | None, at_least: bool) -> str:
    """A target as a bound; nothing for a plain figure."""
    if target is None:
        return ""
    return f"{'≥' if at_least else '≤'} {number(target)}"


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def all_reduce_table(result: Result | None) -> list[str]:
    """Medians and far percentiles beside bare spinning."""
    lines = [
        "| message | calls | median µs | P99.9 µs | longest µs | targets |",
        "|---|---|---|---|---|---|",
    ]
    if result is None:
        return lines + [
            f"| {size >> 10} KiB | | not measured yet | | | median ≤ {us:.0f}, P99.9 ≤ 1,000 |"
            for size, us in ALL_REDUCE_TARGETS.items()
        ]
    for row in result["all_reduce"]:
        target = ALL_REDUCE_TARGETS.get(row["bytes"])
        name = "bare exchange" if target is None else f"{row['bytes'] // 1024} KiB"
        verdict = ""
        if target is not None:
            met = row["median_us"] <= target, row["p999_us"] <= P999_TARGET_US
            words = ["met" if each else "**not met**" for each in met]
            verdict = f"median ≤ {target:.0f}: {words[0]}, P99.9 ≤ 1,000: {words[1]}"
        cells = (number(row[key]) for key in ("median_us", "p999_us", "max_us"))
        lines.append(f"| {name} | {row['calls']:,} | {' | '.join(cells)} | {verdict} |")
    return lines


def provenance(section: Section, result: Result | None) -> str:
    """Which run a section's figures are of."""
    if result is None:
        return f"`make bench ONLY={section.name}` has not run yet.\n"
    machine = result["machine"]
    layers = {group["n_layers"] for group in result.get("groups", [])} - {"all"}
    reduced = f"; only {', '.join(map(str, sorted(layers)))} layers" if layers else ""
    return (
        f"`{section.name}.json`: {machine['cpu']}, {machine['usable_cores']} cores, torch "
        f"{machine['torch']}, commit {machine['commit']}, {machine['date'][:16]}, load "
        f"{machine['load_1min']:.1f} before and {result['load_1min_after']:.1f} after{reduced}.\n"
    )


def ratio_bars(results: dict[str, Result]) -> list[tuple[str, dict[str, Any]]]:
    """Every ratio that has a target, with the name that its bar gets."""
    return [
        (f"{section.title}: {group['shape']}, {case['name']}, {row['label']}", row)
        for section in SECTIONS
        for group in results.get(section.name, {}).get("groups", [])
        for case in group["cases"]
        for row in case["rows"]
        if row["target"] is not None
    ]


def draw(results: dict[str, Result], folder: Path) -> list[str]:
    """Plots as small SVGs; their names. Nothing without matplotlib or results."""
    bars = ratio_bars(results)
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError:
        return []
    if not bars:
        return []
    matplotlib.rcParams |= {"svg.hashsalt": "sidewinder", "svg.fonttype": "none", "font.size": 8}
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.22 * len(bars)), layout="constrained")
    for place, (_, row) in enumerate(bars):
        scaled = [row[key] / row["target"] for key in ("min", "median", "max")]
        good = scaled[1] >= 1 if row["at_least"] else scaled[1] <= 1
        axes.barh(place, scaled[1], color="#2a7f62" if good else "#b8570f", height=0.7)
        axes.plot([scaled[0], scaled[2]], [place, place], color="black", linewidth=1)
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("reached / target, with the range over rounds; memory: below 1 is good")
    figure.savefig(folder / "targets.svg", metadata={"Date": None})
    pyplot.close(figure)
    return ["targets"]


def read_results(folder: Path) -> dict[str, Result]:
    """Section to raw result, of those that are there; runs with tiny models do not count."""
    found = {}
    for section in SECTIONS:
        path = folder / f"{section.name}.json"
        if path.is_file():
            result = json.loads(path.read_text())
            if not result["tiny"]:
                found[section.name] = result
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    results = read_results(args.results)
    plots = draw(results, args.docs / "plots")
    args.docs.mkdir(parents=True, exist_ok=True)
    (args.docs / "benchmarks.md").write_text(page(results, plots))
    print(f"{args.docs / 'benchmarks.md'}: {len(results)} of {len(SECTIONS)} sections measured")


if __name__ == "__main__":
    main()
