"""What cards measured, for docs/projection.md: their efficiencies, and the projection's error."""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sidewinder.projection.calibration import Calibration
from sidewinder.projection.one_card import Suite, read_suite

RESULTS = Path("benchmarks/results")
GPU_RESULT = RESULTS / "projection-gpu.json"
SAME_CHIP = {"h100": "h200", "h200": "h100"}
"""Cards that differ in memory only, whose efficiencies serve each other."""

ENGINE = (
    "TTFT",
    "TPOT",
    "short prompt, TTFT",
    "short prompt, TPOT",
    "batch 32, TTFT",
    "batch 32, whole",
)
SHARD = ("prefill", "decode 1", "decode 32")


@cache
def suites(folder: Path = RESULTS) -> tuple[Suite, ...]:
    """The committed results of cards, by name of the file."""
    files = sorted(folder.glob("gpu-suite-*.json"))
    # The table of tuned block sizes lies beside each.
    return tuple(read_suite(file) for file in files if not file.name.endswith(".tuning.json"))


def calibration_of(gpu: str) -> Calibration:
    """A card's measured efficiencies, else its sister's, else the assumed ones."""
    measured = {suite.device.name: suite.calibration for suite in suites()}
    return measured.get(gpu) or measured.get(SAME_CHIP.get(gpu, gpu)) or Calibration()


def constants_lines() -> Iterator[str]:
    """Which constants the page's tables take for which GPUs."""
    for suite in suites():
        sister = SAME_CHIP.get(suite.device.name)
        has_own = any(other.device.name == sister for other in suites())
        served = (
            suite.device.name if sister is None or has_own else f"{suite.device.name}, {sister}"
        )
        measured, assumed = constants(suite.calibration, True), constants(suite.calibration, False)
        yield (
            f"**{served}**: measured on one {suite.gpu} (`benchmarks/results/{suite.name}`): "
            f"{measured}; assumed: {assumed}.\n"
        )
    others = "All other GPUs" if suites() else "All GPUs: no card has been measured"
    yield f"**{others}**: assumed: {constants(Calibration(), False)}."


def constants(calibration: Calibration, measured: bool) -> str:
    """The measured or the assumed constants, with units."""
    values = {
        name: each["value"]
        for name, each in calibration.values().items()
        if each["measured"] == measured and name != "reserve_bytes"
    }
    return ", ".join(
        f"{name} {1e6 * value:.3g} µs" if name.endswith("_s") else f"{name} {value:.2f}"
        for name, value in values.items()
    )


def gpu_table() -> Iterator[str]:
    """Projected beside measured on a card, from the committed comparison."""
    if not GPU_RESULT.exists():
        yield "No result of a card is committed yet."
        return
    report = json.loads(GPU_RESULT.read_text())
    file = f"benchmarks/results/{report['suite']}"
    yield f"{report['gpu']}, `{file}`: measured / projected, ms (error)."
    for columns, title in ((ENGINE, "the engine on one rank"), (SHARD, "one rank's shard alone")):
        yield from _pivot(report["rows"], columns, title)


def _pivot(rows: Sequence[dict[str, Any]], columns: Sequence[str], title: str) -> Iterator[str]:
    """A line per model and number of ranks, a column per figure; nothing if none was measured."""
    cells = {(row["model"], row["tp"], row["what"]): row for row in rows if row["what"] in columns}
    if not cells:
        return
    yield ""
    yield f"| {title} | tp | {' | '.join(columns)} |"
    yield "|---|---|" + "---|" * len(columns)
    for model, tp in dict.fromkeys((model, tp) for model, tp, _ in cells):
        line = [_cell(cells.get((model, tp, what))) for what in columns]
        yield f"| {model} | {tp} | {' | '.join(line)} |"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    measured, projected = 1e3 * row["measured_s"], 1e3 * row["projected_s"]
    return f"{measured:.2f} / {projected:.2f} ({100 * row['error']:+.0f} %)"
