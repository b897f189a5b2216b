"""Write the tables and the plot of docs/projection.md: the paper's setting, and where TP scales.

    .venv/bin/python tools/project_paper.py            # needs the `bench` extra for the plot

Tables go between `<!-- begin NAME -->` and `<!-- end NAME -->`; nothing else of the page changes.
Efficiencies are those of cards whose suite is in benchmarks/results, and assumed for all others.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from card_tables import calibration_of, constants_lines, gpu_table
from page_blocks import fill

from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.collectives.quantised.policy import PhaseCodecs
from sidewinder.ops.codec.formats import CODECS
from sidewinder.projection.calibration import Calibration
from sidewinder.projection.devices import DEVICES
from sidewinder.projection.links import LINKS
from sidewinder.projection.model import Load, Setting, Speed, project
from sidewinder.projection.sums import EXACT, Wire, sum_times
from sidewinder.projection.work import Step

CPU_RESULT = Path("benchmarks/results/projection-cpu.json")
MODELS = ("mamba-2.8b", "falcon-mamba-7b", "zamba-7b")
PAPER = {2: "1.6–2.1x", 4: "2.6–4.0x"}
TARGET = {2: 1.8, 4: 3.2}
LOADS = {
    "one long prompt": Load(1, 8192, 1),
    "one request": Load(1, 2048, 128),
    "batch 32": Load(32, 2048, 128),
    "batch 128, short prompts": Load(128, 128, 128),
}
PLACES = (
    ("a6000", "pcie4"), ("a100", "pcie4"), ("a100", "nvlink3"), ("h100", "pcie5"),
    ("h100", "nvlink4"), ("h200", "nvlink4"),
)  # fmt: skip
SLOW = Calibration(
    gemm=0.35, memory=0.35, row=0.35, conv=0.15, scan=0.15, attention=0.35, special=0.25, ssd=0.15,
    kernel_s=1e-5, product_s=1e-5, row_s=1e-5, update_s=1e-5, host_s=2e-3,
    source="an eager, unfused baseline",
)  # fmt: skip
"""Assumed: kernels half as good, each launched from Python; what a research baseline looks like."""


def codecs(prefill: str, decode: str | None = None) -> PhaseCodecs:
    """A policy by codec names."""
    return PhaseCodecs(CODECS[prefill], None if decode is None else CODECS[decode])


def setting(model: str, tp: int, place: tuple[str, str], dtype: torch.dtype) -> Setting:
    """A published shape on GPUs."""
    config = parse_model_config(SHAPES[model] | {"dtype": "bfloat16"})
    gpu, link = place
    return Setting(config, tp, dtype, DEVICES[gpu], LINKS[link], calibration_of(gpu))


def gain(one: Speed, other: Speed) -> float:
    """How many times more output tokens per second."""
    return other.output_tokens_per_s / one.output_tokens_per_s


def cpu_table() -> Iterator[str]:
    """Projected beside measured, from the committed comparison."""
    rows = json.loads(CPU_RESULT.read_text())["rows"]
    yield "| model | at | tp | TTFT, ms | projected | error | TPOT, ms | projected | error |"
    yield "|---|---|---|---|---|---|---|---|---|"
    seen = set()
    for row in rows:
        several = row["tp"] > 1
        name = row["model"] + ("" if several in seen else " (fitted)")
        seen.add(several)
        cells = [name, row["date"][11:16], str(row["tp"])]
        for part in (row["ttft"], row["tpot"]):
            cells += [f"{1e3 * part['measured_s']:.1f}", f"{1e3 * part['projected_s']:.1f}"]
            cells.append(f"{round(100 * part['error']):+d} %")
        yield f"| {' | '.join(cells)} |"


def paper_table() -> Iterator[str]:
    """The paper's GPUs and models beside its ratios."""
    yield (
        "| GPUs | model | tp | paper | slow baseline | float32, exact | float32, sums in 16 bits | "
        "bfloat16, exact | int8 in prefill | int8, sums hidden |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    load = LOADS["batch 32"]
    for place in (("a6000", "pcie4"), ("a100", "nvlink3")):
        for model in MODELS:
            for tp in (2, 4):
                yield f"| {place[0]}, {place[1]} | {model} | {tp} | {PAPER[tp]} | " + " | ".join(
                    paper_cells(model, tp, place, load)
                ) + " |"  # fmt: skip


def paper_cells(model: str, tp: int, place: tuple[str, str], load: Load) -> Iterator[str]:
    """One row's ratios to one rank of the same kind."""
    wide = setting(model, tp, place, torch.float32)
    slow = replace(wide, calibration=SLOW, looks_ahead=False)
    yield f"{scaling(slow, load, EXACT):.2f}x"
    exact, cast = scaling(wide, load, EXACT), scaling(wide, load, codecs("bf16", "bf16"))
    yield f"{exact:.2f}x"
    yield f"{cast:.2f}x ({100 * (cast / exact - 1):+.0f} %)"
    narrow = setting(model, tp, place, torch.bfloat16)
    exact, int8 = scaling(narrow, load, EXACT), scaling(narrow, load, codecs("int8"))
    hidden = scaling(replace(narrow, hide_sums=True), load, codecs("int8"))
    yield f"{exact:.2f}x"
    yield f"{int8:.2f}x ({100 * (int8 / exact - 1):+.0f} %)"
    yield f"{hidden:.2f}x"


def scaling(where: Setting, load: Load, policy: PhaseCodecs) -> float:
    """Output tokens per second over those of one rank of the same."""
    one = project(replace(where, tp=1, hide_sums=False), load)
    return gain(one, project(where, load, policy))


def scaling_table() -> Iterator[str]:
    """Where the targets are reached."""
    yield "| model | GPUs | tp | " + " | ".join(LOADS) + " | prefill | decode, batch 1 |"
    yield "|---|---|---|" + "---|" * (len(LOADS) + 2)
    for model in (*MODELS[:2], "mamba2-2.7b"):
        for place in PLACES:
            for tp in (2, 4):
                where = setting(model, tp, place, torch.bfloat16)
                cells = [cell(where, load) for load in LOADS.values()]
                one, many = (project(replace(where, tp=n), LOADS["one request"]) for n in (1, tp))
                cells.append(f"{one.ttft / many.ttft:.2f}x")
                cells.append(f"{one.tpot / many.tpot:.2f}x")
                yield f"| {model} | {place[0]}, {place[1]} | {tp} | {' | '.join(cells)} |"


def cell(where: Setting, load: Load) -> str:
    """Exact sums; with int8 in prefill and hidden sums; bold where the target is reached."""
    best = replace(where, hide_sums=True)
    ratios = [scaling(where, load, EXACT), scaling(best, load, codecs("int8"))]
    shown = [f"**{r:.2f}**" if r >= TARGET[where.tp] else f"{r:.2f}" for r in ratios]
    return " / ".join(shown)


def link_table() -> Iterator[str]:
    """What a codec gains, by link."""
    yield "| link | GPU | int8 pays from | TTFT int8 | int6 | int4 | decode batch 1, int8 |"
    yield "|---|---|---|---|---|---|---|"
    places = [("h100", name) for name in LINKS if name not in ("nvbridge", "pcie4")]
    for gpu, link in [("a6000", "pcie4"), *places]:
        where = setting("falcon-mamba-7b", 4, (gpu, link), torch.bfloat16)
        exact = project(where, LOADS["one long prompt"])
        gains = [
            f"{exact.ttft / project(where, LOADS['one long prompt'], codecs(name)).ttft:.2f}x"
            for name in ("int8", "int6", "int4")
        ]
        request = LOADS["one request"]
        decode = project(where, request).tpot / project(where, request, codecs("int8", "int8")).tpot
        yield (f"| {link} | {gpu} | {break_even(where)} | {' | '.join(gains)} | {decode:.2f}x |")


def break_even(where: Setting) -> str:
    """The smallest delta, in powers of two of rows, that int8 sums faster."""
    wire = Wire(where.device, where.link, where.calibration)
    for power in range(18):
        step = Step(1 << power, 1, 1)
        exact, int8 = (
            next(
                each.seconds
                for each in sum_times(where.config, where.tp, where.dtype, step, policy, wire)
                if each.name == "out_proj sum"
            )
            for policy in (EXACT, codecs("int8", "int8"))
        )
        if int8 < exact:
            size = (1 << power) * where.config.d_model * where.dtype.itemsize
            return f"{size / 1e6:.2f} MB"
    return "never"


def plot(file: Path) -> None:
    """Scaling on the paper's GPUs beside the paper's range."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sidewinder"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    ranges = {2: (1.6, 2.1), 4: (2.6, 4.0)}
    for axis, place in zip(axes, (("a6000", "pcie4"), ("a100", "nvlink3")), strict=True):
        for tp, (low, high) in ranges.items():
            label = "paper's range" if tp == 2 else None
            axis.fill_between([tp - 0.5, tp + 0.5], low, high, color="0.85", label=label)
        for style, model in zip("o-", MODELS[:2], strict=True):
            marker = "o" if style == "o" else "s"
            for name, policy, hide, line in (
                ("exact", EXACT, False, "-"),
                ("int8 in prefill, sums hidden", codecs("int8"), True, "--"),
            ):
                points = [1.0] + [
                    scaling(
                        replace(setting(model, tp, place, torch.bfloat16), hide_sums=hide),
                        LOADS["batch 32"],
                        policy,
                    )
                    for tp in (2, 4)
                ]
                axis.plot([1, 2, 4], points, line, marker=marker, label=f"{model}, {name}")
        axis.plot([1, 4], [1, 4], ":", color="0.5")
        axis.set_title(f"{place[0]}, {place[1]}: batch 32, 2048 + 128")
        axis.set_xlabel("GPUs")
        axis.set_xticks([1, 2, 4])
    axes[0].set_ylabel("projected throughput over one GPU")
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


TABLES = {
    "constants": constants_lines,
    "cpu": cpu_table,
    "gpu": gpu_table,
    "paper": paper_table,
    "scaling": scaling_table,
    "links": link_table,
}
"""The page's blocks by name."""


def main() -> None:
    """Write the page's tables and the plot."""
    parser = argparse.ArgumentParser(description="Tables and plot of docs/projection.md.")
    parser.add_argument("--page", type=Path, default=Path("docs/projection.md"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/projection.svg"))
    parser.add_argument("--no-plot", action="store_true")
    args = parser.parse_args()
    page = args.page.read_text()
    for name, rows in TABLES.items():
        page = fill(page, name, rows())
    args.page.write_text(page)
    if not args.no_plot:
        plot(args.plot)


if __name__ == "__main__":
    main()
