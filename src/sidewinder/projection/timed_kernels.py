"""A card's constants out of its timed kernels, as `tools/gpu_suite.py` writes them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sidewinder.projection.devices import Device
from sidewinder.projection.lines import fitted_line

EFFICIENCIES = ("gemm", "memory", "row", "conv", "scan", "attention", "special", "ssd", "codec")
"""The constants that are parts of a peak."""

LARGE_BYTES, SMALL_BYTES = 4e6, 2e5
"""What moves less than the first is mostly launch and latency, less than the second only that."""

UPDATES = tuple(f"{name}, decode 1" for name in ("selective_scan", "projected_scan", "ssd_scan"))
"""The suite's names for the scan of one sequence's next token."""

Row = Mapping[str, Any]


def constants_of(rows: Sequence[Row], device: Device, dtype: torch.dtype) -> dict[str, float]:
    """Efficiencies and fixed costs, by the names of `Calibration`; only those that rows tell of.

    Args:
        rows: of the suite's kernels: `kind`, `case`, `seconds`, `tuned_seconds`, `bytes`, `flops`,
            `special`. Rows without `seconds` and `bytes` do not count: those that failed, and other
            people's kernels.
        device: the card, whose data sheet the efficiencies relate to.
        dtype: of the operands.
    """
    timed = [row for row in rows if "seconds" in row and "bytes" in row]
    fixed = fixed_costs(timed)
    return fixed | efficiencies(timed, device, dtype, fixed)


def fixed_costs(rows: Sequence[Row]) -> dict[str, float]:
    """Seconds of what moves next to nothing, from a kernel's launch to the end of its stores."""
    small = [
        seconds(row)
        for row in rows
        if _kind(row) in ("memory", "conv")
        and row["bytes"] < SMALL_BYTES
        and not (_multiplies(row) or row.get("case") in UPDATES)
    ]
    updates = [seconds(row) for row in rows if row.get("case") in UPDATES]
    found = {}
    if small:
        found["kernel_s"] = statistics.median(small)
    if updates:
        found["update_s"] = statistics.median(updates)
    for name, points in (
        ("row_s", [(row["bytes"], seconds(row)) for row in rows if _is_row(row)]),
        ("product_s", [(row["bytes"], row["seconds"]) for row in _products(rows)]),
    ):
        if len({size for size, _ in points}) > 1:
            found[name] = max(fitted_line(points)[0], 0.0)
    return found


def efficiencies(
    rows: Sequence[Row], device: Device, dtype: torch.dtype, fixed: Mapping[str, float]
) -> dict[str, float]:
    """Medians of data sheet over measured time; small kernels do not count.

    Args:
        rows, device, dtype: as of `constants_of`.
        fixed: costs of products, which are not their bandwidth's fault.
    """
    reached: dict[str, list[float]] = {}
    for row in _products(rows):
        if row["bytes"] >= LARGE_BYTES:
            took = row["seconds"] - fixed.get("product_s", 0.0)
            reached.setdefault("memory", []).append(row["bytes"] / device.bytes_per_s / took)
    for row in rows:
        if row["bytes"] < LARGE_BYTES or row.get("case") in UPDATES or _is_products(row):
            continue
        took = seconds(row) - (fixed.get("row_s", 0.0) if _is_row(row) else 0.0)
        times = {
            _kind(row): max(row["bytes"] / device.bytes_per_s, row["flops"] / device.flops(dtype)),
            "special": row["special"] / device.special_per_s,
        }
        # A scan's prefill says how fast exponentials are, its decode steps, bytes.
        kind = max(times, key=lambda name: times[name])
        reached.setdefault(kind, []).append(times[kind] / took)
    return {name: statistics.median(reached[name]) for name in EFFICIENCIES if name in reached}


def seconds(row: Row) -> float:
    """With the faster block sizes, if others than the first were tried."""
    return float(min(row["seconds"], row.get("tuned_seconds") or row["seconds"]))


def _kind(row: Row) -> str:
    """Mamba-2's scan of single tokens has no products: it moves states, as Mamba-1's does. And
    convolutions are not as fast as what moves states."""
    kind: str = row["kind"]
    for operator, name in (("causal_conv1d", "conv"), ("paged_attention", "attention")):
        if str(row.get("case")).startswith(operator):
            return name
    if kind == "ssd" and not row["flops"]:
        return "scan"
    return "row" if _is_row(row) else kind


def _products(rows: Sequence[Row]) -> Sequence[Row]:
    """Products of a few rows. Where none was timed, those of one row stand for them, as they were
    before tuning, which is for one row only."""
    return [row for row in rows if _is_products(row)] or [row for row in rows if _is_row(row)]


def _is_row(row: Row) -> bool:
    """One row by a matrix: bound by memory, with operations."""
    return _multiplies(row) and not _is_products(row)


def _is_products(row: Row) -> bool:
    """Several rows by a matrix, but still bound by memory."""
    return _multiplies(row) and " rows by " in str(row.get("case"))


def _multiplies(row: Row) -> bool:
    return bool(row["kind"] == "memory" and row["flops"])
