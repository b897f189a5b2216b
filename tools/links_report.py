"""Writes the tables of docs/shaped-links.md, and its plots, from the raw results.

    .venv/bin/python tools/links_report.py

Everything between the two markers in the page is replaced. Plots need matplotlib (the `bench`
extra).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sidewinder.bench.shapes import SHAPES
from sidewinder.ops.codec import CODECS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "shaped-links.json"
PAGE = ROOT / "docs" / "shaped-links.md"
BEGIN = "<!-- tools/links_report.py writes from here -->\n"
END = "<!-- to here -->\n"
HEADERS = 1514 / 1448
"""Bytes of a full Ethernet frame over those of TCP's payload in it."""
MEANT = 0.2
"""Where bytes take less of the time, the spread of runs is larger than what hiding can save."""
HIDING = ("x_proj", "out_proj", "both")

Row = dict[str, Any]


def bits_per_second(rate: str) -> float:
    """`200mbit` and its like as a number."""
    units = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
    return next(float(rate.removesuffix(u)) * f for u, f in units.items() if rate.endswith(u))


def way_of(row: Row) -> tuple[str, str]:
    """Codec, and what is hidden."""
    return row["all_reduce"], row["overlap"]


class Run:
    """One link and one session: ways are compared only within it."""

    def __init__(self, session: Row, link: Row) -> None:
        self.session, self.link = session, link
        self.rate = bits_per_second(link["rate"])
        self.engines = {way: self._mean(*way) for way in map(way_of, link["engines"])}
        self.plain = self.engines["exact", "none"]

    def _mean(self, codec: str, overlap: str) -> Row:
        """Of the runs of one way."""
        rows = [row for row in self.link["engines"] if way_of(row) == (codec, overlap)]
        numbers = ("total_s", "prefill_s", "decode_s", "sent_bytes")
        return {name: sum(row[name] for row in rows) / len(rows) for name in numbers}

    @property
    def delta_bytes(self) -> float:
        """What deltas put on the wire when they are summed exactly."""
        load, width = self.session["load"], SHAPES[self.session["shape"]]["hidden_size"]
        rows = load["batch"] * (load["prompt"] + load["output"] - 1)
        return float(rows * width * 2 * self.session["layers"] * HEADERS)

    @property
    def byte_bound(self) -> float:
        """The share of the exact sums' time that deltas need at the link's rate."""
        return self.delta_bytes * 8 / self.rate / float(self.plain["total_s"])

    def gain(self, codec: str, overlap: str) -> float:
        return float(self.plain["total_s"] / self.engines[codec, overlap]["total_s"])

    def possible(self, codec: str) -> float:
        """The gain if the codec cost nothing but its bytes."""
        return 1 / (1 - self.byte_bound * (1 - CODECS[codec].group_bytes / self._exact(codec)))

    def bytes_fell(self, codec: str) -> float:
        """By what factor deltas' bytes fell, from all bytes sent and what is not deltas'."""
        saved = self.plain["sent_bytes"] - self.engines[codec, "none"]["sent_bytes"]
        return self.delta_bytes / (self.delta_bytes - saved)

    def hidden(self, overlap: str) -> float:
        """Time saved by hiding, as a share of what all bytes need at the link's rate."""
        saved = self.plain["total_s"] - self.engines["exact", overlap]["total_s"]
        return float(saved / (self.plain["sent_bytes"] * 8 / self.rate))

    def _exact(self, codec: str) -> int:
        return 2 * CODECS[codec].group_size


def transports(runs: list[Run]) -> Iterator[str]:
    yield "| link | bytes | tcp | gloo |\n|---|---|---|---|\n"
    for run in runs:
        rows = {(row["transport"], row["bytes"]): row for row in run.link["messages"]}
        for size in sorted({size for _, size in rows}):
            both = " | ".join(
                f"{rows[name, size]['median_us'] / 1e3:.2f} ms, "
                f"{8 * rows[name, size]['busbw_gbps']:.2f} Gb/s"
                for name in ("tcp", "gloo")
            )
            yield f"| {run.link['rate']} | {size:,} | {both} |\n"


def codecs(runs: list[Run]) -> Iterator[str]:
    yield "| link | exact | s | codec | time | gain | possible | bytes fell by |\n"
    yield "|---|---|---|---|---|---|---|---|\n"
    for run in runs:
        for codec in ("int8", "int6", "int4"):
            if (codec, "none") not in run.engines:
                continue
            yield (
                f"| {run.link['rate']} | {run.plain['total_s']:.2f} s | {run.byte_bound:.2f} "
                f"| {codec} | {run.engines[codec, 'none']['total_s']:.2f} s "
                f"| {run.gain(codec, 'none'):.2f} | {run.possible(codec):.2f} "
                f"| {run.bytes_fell(codec):.2f} |\n"
            )


def hiding(runs: list[Run]) -> Iterator[str]:
    yield "| link | hidden | prefill | decode | all | gain | share of link time |\n"
    yield "|---|---|---|---|---|---|---|\n"
    for run in runs:
        for codec, overlap in [("exact", way) for way in ("none", *HIDING)] + [("int4", "both")]:
            row = run.engines[codec, overlap]
            name = overlap if codec == "exact" else f"{overlap}, {codec}"
            counts = codec == "exact" and run.byte_bound > MEANT
            share = f"{run.hidden(overlap):.0%}" if counts else ""
            yield (
                f"| {run.link['rate']} | {name} | {row['prefill_s']:.2f} s "
                f"| {row['decode_s']:.2f} s | {row['total_s']:.2f} s "
                f"| {run.gain(codec, overlap):.2f} | {share} |\n"
            )


def draw(runs: list[Run], folder: Path) -> None:
    """Speed against size, and gain by link."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.hashsalt": "sidewinder", "svg.fonttype": "none", "font.size": 8}
    folder.mkdir(parents=True, exist_ok=True)
    figure, (speed, gains) = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for color, run in enumerate(runs):
        for name, style in (("tcp", "-"), ("gloo", "--")):
            rows = [row for row in run.link["messages"] if row["transport"] == name]
            speed.plot([row["bytes"] for row in rows], [8 * row["busbw_gbps"] for row in rows],
                       style, color=f"C{color}", label=f"{run.link['rate']}, {name}")  # fmt: skip
    speed.set(xscale="log", yscale="log", xlabel="bytes", ylabel="bus bandwidth, Gb/s")
    speed.legend(fontsize=6)
    bars = [("int8", "none"), ("int6", "none"), ("int4", "none")]
    for place, way in enumerate(bars):
        offsets = [index + 0.22 * (place - 1) for index in range(len(runs))]
        gains.bar(offsets, [run.gain(*way) for run in runs], 0.2, label=way[0])
        gains.plot(offsets, [run.possible(way[0]) for run in runs], "k_")
    gains.set_xticks(range(len(runs)), [run.link["rate"] for run in runs])
    gains.set(ylim=(0.9, None), ylabel="gain over exact sums (line: bytes alone)")
    gains.legend(fontsize=6)
    figure.savefig(folder / "shaped-links.svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    sessions = json.loads(RESULTS.read_text())
    runs = [Run(session, link) for session in sessions for link in session["links"]]
    body = "".join([
        "**Messages alone**, two ranks, medians.\n\n", *transports(runs),
        "\n**Codecs**, nothing hidden.\n\n", *codecs(runs),
        "\n**Hidden sums**, exact unless said.\n\n", *hiding(runs),
    ])  # fmt: skip
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + BEGIN + body + END + rest.partition(END)[2])
    draw(runs, ROOT / "docs" / "plots")


if __name__ == "__main__":
    main()
