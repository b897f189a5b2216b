"""Writes the accuracy tables of docs/quantised-all-reduce.md, and its plots, from the raw results.

    .venv/bin/python tools/quantised_report.py

Plots need matplotlib (the `bench` extra).
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from page_blocks import fill

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "quantised-accuracy.json"
PAGE = ROOT / "docs" / "quantised-all-reduce.md"
VARIANTS = ("-axes", "-float32")
"""Ends the names of models with a residual stream along its principal axes, and in float32."""
BITS = {"int8": 8.125, "int6": 6.5, "int4": 4.5}

Row = dict[str, Any]


class Report:
    """The results, by model, `tp`, rotation and policy."""

    def __init__(self, values: Row) -> None:
        self.rows = {
            (row["model"], row["tp"], row["rotate"], row["policy"]): row for row in values["rows"]
        }
        self.sensitivities = values["sensitivities"]
        self.places = sorted({(row["model"], row["tp"]) for row in values["rows"]})

    def plain(self) -> list[tuple[str, int]]:
        """Model and `tp` of the models as they were trained."""
        return [place for place in self.places if not place[0].endswith(VARIANTS)]


def change(row: Row) -> str:
    return f"{100 * row['perplexity_change']:+.3f} %"


def top1(row: Row) -> str:
    same, error, ties = (100 * row[key] for key in ("top1_agreement", "top1_error", "top1_ties"))
    return f"{same:.2f} ± {error:.2f} % (+ {ties:.2f})"


def shares(row: Row) -> str:
    return ", ".join(f"{100 * part:.0f} % {name}" for name, part in row["shares"].items())


def short(site: str) -> str:
    """A layer's number, or the part of the shared block."""
    parts = site.split(".")
    return parts[1] if parts[0] == "layers" else ".".join(parts[1:])


def spared(row: Row) -> str:
    return ", ".join(short(site) for site in row["sites"]) or "none"


def table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def int8_table(report: Report) -> str:
    """int8 everywhere, and with the most sensitive sums left in 16 bits."""
    head = ["model", "tp", "sums", "perplexity", "mean KL", "P99 KL", "same top token (+ ties)"]
    lines = []
    for model, tp in report.plain():
        for name in ("int8", "int8 policy", "int6"):
            row = report.rows[model, tp, False, name]
            figures = [change(row), f"{row['mean_kl']:.6f}", f"{row['p99_kl']:.5f}", top1(row)]
            lines.append([model, str(tp), shares(row), *figures])
    return table(head, lines)


def int4_table(report: Report) -> str:
    """int4 everywhere and by policy, plain and rotated."""
    head = ["model", "tp", "rotated", "sums", "in int8: layers", "perplexity", "mean KL", "P99 KL"]
    lines = []
    for model, tp in report.plain():
        for name, rotate in (("int4", False), ("int4", True), ("int4 policy", False),
                             ("int4 policy", True)):  # fmt: skip
            row = report.rows[model, tp, rotate, name]
            figures = [change(row), f"{row['mean_kl']:.5f}", f"{row['p99_kl']:.4f}"]
            lines.append(
                [model, str(tp), "yes" if rotate else "no", shares(row), spared(row), *figures]
            )
    return table(head, lines)


def budget_table(report: Report) -> str:
    """What budgets chose, and what it cost."""
    head = ["model", "tp", "budget", "chosen", "mean KL", "perplexity"]
    lines = []
    for (model, tp, _, name), row in sorted(report.rows.items()):
        if name.startswith("kl ") and not model.endswith(VARIANTS):
            kl = f"{row['mean_kl']:.6f}"
            lines.append([model, str(tp), name.removeprefix("kl "), shares(row), kl, change(row)])
    return table(head, lines)


def rotation_table(report: Report) -> str:
    """What rotation itself changes, and what it does to int8."""
    head = ["model", "tp", "dtype", "int8", "int8, rotated", "int4", "int4, rotated",
            "exact, rotated", "top token, rotated"]  # fmt: skip
    lines = []
    for model, tp in report.places:
        rows = [
            report.rows[model, tp, *key]
            for key in ((False, "int8"), (True, "int8"), (False, "int4"), (True, "int4"))
        ]
        exact = report.rows[model, tp, True, "exact"]
        costs = [f"{row['mean_kl']:.2g}" for row in (*rows, exact)]
        lines.append([model, str(tp), exact["dtype"], *costs, top1(exact)])
    return table(head, lines)


def sections(report: Report) -> Iterator[str]:
    counts = sorted(row["predicted"] for row in report.rows.values())
    yield f"Rows are over {counts[0]:,} to {counts[-1]:,} predictions each.\n"
    yield "**int8 and int6**, not rotated; where a part is exact, it is the most sensitive sums.\n"
    yield int8_table(report)
    yield "**int4.**\n"
    yield int4_table(report)
    yield "**Budgets** (`all_reduce_kl`), not rotated.\n"
    yield budget_table(report)
    yield "**Rotation**: mean KL. `-axes` have outliers made on purpose.\n"
    yield rotation_table(report)


def draw(report: Report, folder: Path) -> None:
    """Both plots, as small SVGs."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.hashsalt": "sidewinder", "svg.fonttype": "none", "font.size": 8}
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
    models = sorted({model for model, _ in report.plain()})
    for model, tp in report.plain():
        color, style = f"C{models.index(model)}", "-" if tp == 2 else "--"
        costs = [report.rows[model, tp, False, name]["mean_kl"] for name in BITS]
        axes.plot(list(BITS.values()), costs, style, color=color, marker=".",
                  label=f"{model}, tp={tp}")  # fmt: skip
        floor = report.rows[model, tp, True, "exact"]["mean_kl"]
        axes.plot(16, floor, marker="x", color=color)
    axes.set_yscale("log")
    axes.set_xlabel("bits per element on the wire (x: 16-bit rounding alone)")
    axes.set_ylabel("mean KL divergence, nats")
    axes.legend(fontsize=6)
    figure.savefig(folder / "quantised-kl.svg", metadata={"Date": None})
    pyplot.close(figure)
    draw_sensitivity(report, folder)


def draw_sensitivity(report: Report, folder: Path) -> None:
    """Every sum's cost in int4 at tp=4, and which stay in 16 bits beside int8."""
    from matplotlib import pyplot

    shown = [part for part in report.sensitivities
             if part["tp"] == 4 and not part["model"].endswith(VARIANTS)]  # fmt: skip
    figure, grid = pyplot.subplots(
        1, len(shown), figsize=(9, 2.6), sharey=True, layout="constrained", squeeze=False
    )
    for axes, part in zip(grid[0], shown, strict=True):
        kept = report.rows[part["model"], 4, False, "int8 policy"]["sites"]
        names = [short(site) for site in part["sites"]]
        for place, (site, costs) in enumerate(part["sites"].items()):
            color = "#b8570f" if site in kept else "#2a7f62"
            for codec, width in (("int4", 0.8), ("int8", 0.4)):
                axes.bar(place, costs[codec], width, color=color, alpha=0.5 if width > 0.5 else 1)
        axes.set_yscale("log")
        axes.set_xticks(range(len(names)), names, rotation=60 if len(names) > 5 else 0)
        axes.set_title(part["model"], fontsize=8)
    grid[0][0].set_ylabel("mean KL, that sum alone\n(wide: int4, narrow: int8)")
    figure.savefig(folder / "quantised-sensitivity.svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Write tables and plots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    report = Report(json.loads(args.results.read_text()))
    args.page.write_text(fill(args.page.read_text(), "accuracy", ["", *sections(report)]))
    draw(report, args.page.parent / "plots")


if __name__ == "__main__":
    main()
