"""The distributions of a serving benchmark as one SVG picture."""

from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, MARGIN = 300, 220, 45
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
PANELS = (("ttft_s", "time to first token"), ("itl_s", "between tokens"), ("e2e_s", "whole"))


def plot(result: dict[str, Any]) -> str:
    """Cumulative distributions of TTFT, ITL and E2E, a line per pass.

    Args:
        result: of `bench_serve`, its `answers` included.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(PANELS)}" '
        f'height="{HEIGHT}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (name, title) in enumerate(PANELS):
        lines = [_values(answers, name) for answers in result["answers"]]
        parts.append(f'<g transform="translate({number * WIDTH},0)">')
        parts += _panel(f"{title} (ms)", lines)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _values(answers: Sequence[dict[str, Any]], name: str) -> list[float]:
    good = [answer[name] for answer in answers if answer["error"] is None]
    flat = [gap for gaps in good for gap in gaps] if name == "itl_s" else good
    return sorted(1e3 * value for value in flat if value is not None)


def _panel(title: str, lines: Sequence[Sequence[float]]) -> list[str]:
    most = max((values[-1] for values in lines if values), default=1.0) or 1.0
    left, right, top, bottom = MARGIN, WIDTH - 15, 25, HEIGHT - 30
    parts = [
        f'<text x="{WIDTH / 2}" y="15" text-anchor="middle">{escape(title)}</text>',
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="black"/>',
    ]
    for part in (0.0, 0.5, 1.0):
        y = bottom - part * (bottom - top)
        x = left + part * (right - left)
        parts.append(f'<text x="{left - 4}" y="{y + 4}" text-anchor="end">{part:.0%}</text>')
        parts.append(
            f'<text x="{x}" y="{bottom + 14}" text-anchor="middle">{part * most:.4g}</text>'
        )
    for number, values in enumerate(lines):
        if values:
            places = [
                f"{left + value / most * (right - left):.1f},"
                f"{bottom - (index + 1) / len(values) * (bottom - top):.1f}"
                for index, value in enumerate(values)
            ]
            colour = COLOURS[number % len(COLOURS)]
            points = " ".join(places)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
            y = top + 14 * (number + 1)
            label = f"pass {number + 1}"
            parts.append(f'<text x="{left + 6}" y="{y}" fill="{colour}">{label}</text>')
    return parts
