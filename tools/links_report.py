"""Writes the tables of docs/shaped-links.md, and its plots, from the raw results.

    .venv/bin/python tools/links_report.py

Plots need matplotlib (the `bench` extra).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from page_blocks import fill

from sidewinder.bench.shapes import SHAPES
from sidewinder.ops.codec import CODECS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "shaped-links.json"
PAGE = ROOT / "docs" / "shaped-links.md"
HEADERS = 1514 / 1448
"""Bytes of a full Ethernet frame over those of TCP's payload in it."""
USUAL_SHAPE = "mamba-790m"
PLAIN = ("exact", "none")
HIDING = ("x_proj", "out_proj", "both")
NUMBERS = ("total_s", "prefill_s", "decode_s", "sent_bytes", "waited_s", "compute_cpu_s",
           "other_cpu_s")  # fmt: skip

Row = dict[str, Any]


def bits_per_second(rate: str) -> float:
    """`200mbit` and its like as a number."""
    units = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
    return next(float(rate.removesuffix(u)) * f for u, f in units.items() if rate.endswith(u))


def way_of(row: Row) -> tuple[str, str]:
    """Codec, and what is hidden."""
    return row["all_reduce"], row["overlap"]


class Run:
    """One link in one session: ways are compared only within it."""

    def __init__(self, session: Row, link: Row) -> None:
        self.session, self.link = session, link
        self.rate = bits_per_second(link["rate"])
        self.ranks = session["ranks"]
        self.engines = {way: self._mean(*way) for way in map(way_of, link["engines"])}

    @property
    def wires(self) -> str:
        """The links."""
        return (
            f"{self.link['rate']}, {self.ranks} ranks" if self.ranks > 2 else str(self.link["rate"])
        )

    @property
    def name(self) -> str:
        """The links, and what is unusual of the engine."""
        shape, layers = self.session["shape"], self.session["layers"]
        whole = SHAPES[shape]["num_hidden_layers"]
        parts = [self.wires]
        parts += [shape] if shape != USUAL_SHAPE else []
        parts += [f"{layers} layers"] if layers < whole else []
        return ", ".join(parts)

    def _mean(self, codec: str, overlap: str) -> Row:
        """Of the runs of one way."""
        rows = [row for row in self.link["engines"] if way_of(row) == (codec, overlap)]
        return {name: sum(row[name] for row in rows) / len(rows) for name in NUMBERS}

    @property
    def plain(self) -> Row:
        return self.engines[PLAIN]

    @property
    def delta_bytes(self) -> float:
        """What deltas put on the wire when they are summed exactly, by each rank."""
        load, width = self.session["load"], SHAPES[self.session["shape"]]["hidden_size"]
        rows = load["batch"] * (load["prompt"] + load["output"] - 1)
        sent = 2 * (self.ranks - 1) / self.ranks
        return float(rows * width * 2 * self.session["layers"] * sent * HEADERS)

    @property
    def byte_bound(self) -> float:
        """The share of the exact sums' time that deltas need at the link's rate."""
        return self.delta_bytes * 8 / self.rate / float(self.plain["total_s"])

    def gain(self, codec: str, overlap: str, over: tuple[str, str] = PLAIN) -> float:
        return float(self.engines[over]["total_s"] / self.engines[codec, overlap]["total_s"])

    def possible(self, codec: str) -> float:
        """The gain if the codec cost nothing but its bytes."""
        exact = 2 * CODECS[codec].group_size
        return 1 / (1 - self.byte_bound * (1 - CODECS[codec].group_bytes / exact))

    def bytes_fell(self, codec: str) -> float:
        """By what factor deltas' bytes fell, from all bytes sent and what is not deltas'."""
        saved = self.plain["sent_bytes"] - self.engines[codec, "none"]["sent_bytes"]
        return float(self.delta_bytes / (self.delta_bytes - saved))

    def hidden(self, codec: str, overlap: str) -> float:
        """The share of the codec's waiting that hiding took away."""
        before, after = (self.engines[codec, way]["waited_s"] for way in ("none", overlap))
        return 1 - float(after / before)


def messages(runs: Sequence[Run]) -> Iterator[str]:
    """Every transport and codec by size."""
    runs = [run for run in runs if run.link["messages"]]
    found = {
        (run.wires, row["bytes"], row["transport"], row["codec"]): row
        for run in runs
        for row in run.link["messages"]
    }
    names = list(dict.fromkeys(key[2:] for key in found))
    yield "| link | bytes | " + " | ".join(_title(*name) for name in names) + " |\n"
    yield "|---|---|" + "---|" * len(names) + "\n"
    for link, size in dict.fromkeys(key[:2] for key in found):
        cells = [found.get((link, size, *name)) for name in names]
        text = " | ".join(
            f"{row['median_us'] / 1e3:.2f} ms, {8 * row['busbw_gbps']:.2f}" if row else ""
            for row in cells
        )
        yield f"| {link} | {size:,} | {text} |\n"


def _title(transport: str, codec: str) -> str:
    return transport if codec == "exact" else f"{transport}, {codec}"


def codecs(runs: Sequence[Run]) -> Iterator[str]:
    """Every codec beside exact sums, nothing hidden."""
    yield (
        "| link | exact: time, computing | s | codec | time, computing | gain | possible | reached "
        "| bytes fell by |\n|---|---|---|---|---|---|---|---|---|\n"
    )
    for run in runs:
        for codec in ("int8", "int6", "int4"):
            if (codec, "none") not in run.engines:
                continue
            gain, possible = run.gain(codec, "none"), run.possible(codec)
            fell = f"{run.bytes_fell(codec):.2f}" if run.ranks == 2 else ""
            yield (
                f"| {run.name} | {_times(run.plain)} | {run.byte_bound:.2f} "
                f"| {codec} | {_times(run.engines[codec, 'none'])} "
                f"| {gain:.2f} | {possible:.2f} | {gain / possible:.0%} | {fell} |\n"
            )


def _times(row: Row) -> str:
    return f"{row['total_s']:.2f} s, {row['compute_cpu_s']:.2f}"


def hiding(runs: Sequence[Run]) -> Iterator[str]:
    """What is hidden, alone and together, in exact sums and in codecs."""
    yield (
        "| link | sums | hidden | prefill | decode | all, computing | gain | waits "
        "| hidden of it | threads that move bytes |\n|---|---|---|---|---|---|---|---|---|---|\n"
    )
    for run in runs:
        if not any(overlap != "none" for _, overlap in run.engines):
            continue
        for codec, overlap in sorted(run.engines, key=_order):
            row = run.engines[codec, overlap]
            share = f"{run.hidden(codec, overlap):.0%}" if overlap != "none" else ""
            yield (
                f"| {run.name} | {codec} | {overlap} | {row['prefill_s']:.2f} s "
                f"| {row['decode_s']:.2f} s | {_times(row)} "
                f"| {run.gain(codec, overlap):.2f} | {row['waited_s']:.2f} s | {share} "
                f"| {row['other_cpu_s']:.2f} s |\n"
            )


def _order(way: tuple[str, str]) -> tuple[int, int]:
    codec, overlap = way
    return ["exact", *CODECS].index(codec), ["none", *HIDING].index(overlap)


def draw(runs: Sequence[Run], folder: Path) -> None:
    """Speed against size, and gain by link."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.hashsalt": "sidewinder", "svg.fonttype": "none", "font.size": 8}
    folder.mkdir(parents=True, exist_ok=True)
    figure, (speed, gains) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    alone = [run for run in runs if run.link["messages"] and run.ranks == 2]
    styles = {"tcp": "-", "gloo": "--", "tcp, int8": "-.", "tcp, int4": ":"}
    for color, run in enumerate(alone):
        for title, style in styles.items():
            rows = [r for r in run.link["messages"] if _title(r["transport"], r["codec"]) == title]
            speed.plot([row["bytes"] for row in rows], [8 * row["busbw_gbps"] for row in rows],
                       style, color=f"C{color}", label=f"{run.link['rate']}, {title}")  # fmt: skip
    speed.set(xscale="log", yscale="log", xlabel="bytes of activations")
    speed.set(ylabel="bus bandwidth, Gb/s of activations")
    speed.legend(fontsize=5, ncols=3)
    draw_gains(gains, [run for run in runs if run.ranks == 2])
    figure.savefig(folder / "shaped-links.svg", metadata={"Date": None})
    pyplot.close(figure)


def draw_gains(axes: Any, runs: Sequence[Run]) -> None:
    """Bars: gain of codecs and of hiding, by link."""
    bars = [("int8", "none"), ("int6", "none"), ("int4", "none"), ("exact", "both"),
            ("int8", "both")]  # fmt: skip
    rates = list(dict.fromkeys(run.link["rate"] for run in runs))
    for place, (codec, overlap) in enumerate(bars):
        for index, rate in enumerate(rates):
            run = next(
                (r for r in runs if r.link["rate"] == rate and (codec, overlap) in r.engines), None
            )
            if run is None:
                continue
            at = index + 0.16 * (place - 2)
            name = codec if overlap == "none" else f"{codec}, hidden"
            label = name if index == 0 else None
            axes.bar(at, run.gain(codec, overlap), 0.14, color=f"C{place}", label=label)
            if overlap == "none":
                axes.plot(at, run.possible(codec), "k_")
    axes.set_xticks(range(len(rates)), rates)
    axes.set(ylim=(0.9, None), ylabel="gain over exact sums (line: bytes alone)")
    axes.legend(fontsize=6)


def main() -> None:
    sessions = json.loads(RESULTS.read_text())
    every = [Run(session, link) for session in sessions for link in session["links"]]
    every.sort(key=lambda run: (run.ranks, run.rate))
    runs = [run for run in every if run.engines]
    text = "".join([
        "**Messages alone**: median, and bus bandwidth of the activations in Gb/s.\n\n",
        *messages(every), "\n**Codecs**, nothing hidden.\n\n", *codecs(runs),
        "\n**Hidden sums.**\n\n", *hiding(runs),
    ])  # fmt: skip
    PAGE.write_text(fill(PAGE.read_text(), "links", text.splitlines()))
    draw(every, ROOT / "docs" / "plots")


if __name__ == "__main__":
    main()
