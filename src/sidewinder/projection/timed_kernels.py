"""A card's constants out of its timed kernels, as `tools/gpu_suite.py` writes them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sidewinder.projection.devices import Device
from sidewinder.projection.lines import fitted_line

EFFICIENCIES = ("gemm", "memory", "conv", "scan", "special", "ssd", "codec")
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
            `special`. Rows without `seconds` do not count.
        device: the card, whose data sheet the efficiencies relate to.
        dtype: of the operands.
    """
    timed = [row for row in rows if "seconds" in row]
    fixed = fixed_costs(timed)
    return fixed | efficiencies(timed, device, dtype, fixed.get("product_s", 0.0))


def fixed_costs(rows: Sequence[Row]) -> dict[str, float]:
    """Seconds of what moves next to nothing, from a kernel's launch to the end of its stores."""
    small = [
        seconds(row)
        for row in rows
        if _kind(row) in ("memory", "conv")
        and row["bytes"] < SMALL_BYTES
        and not (_is_product(row) or row.get("case") in UPDATES)
    ]
    updates = [seconds(row) for row in rows if row.get("case") in UPDATES]
    found = {}
    if small:
        found["kernel_s"] = statistics.median(small)
    if updates:
        found["update_s"] = statistics.median(updates)
    products = [(row["bytes"], seconds(row)) for row in rows if _is_product(row)]
    if len({size for size, _ in products}) > 1:
        start, _ = fitted_line(products)
        found["product_s"] = max(start, 0.0)
    return found


def efficiencies(
    rows: Sequence[Row], device: Device, dtype: torch.dtype, product_s: float
) -> dict[str, float]:
    """Medians of data sheet over measured time; small kernels do not count.

    Args:
        rows, device, dtype: as of `constants_of`.
        product_s: the fixed cost of a product of one row, which is not its bandwidth's fault.
    """
    reached: dict[str, list[float]] = {}
    for row in rows:
        if row["bytes"] < LARGE_BYTES or row.get("case") in UPDATES:
            continue
        took = seconds(row) - (product_s if _is_product(row) else 0.0)
        times = {
            _kind(row): max(row["bytes"] / device.bytes_per_s, row["flops"] / device.flops(dtype)),
            "special": row["special"] / device.special_per_s,
        }
        # A scan's prefill says how fast exponentials are, its decode steps, bytes.
        kind = max(times, key=lambda name: times[name])
        reached.setdefault(kind, []).append(times[kind] / took)
    # Rows of other kinds are of other people's kernels.
    return {name: statistics.median(reached[name]) for name in EFFICIENCIES if name in reached}


def seconds(row: Row) -> float:
    """With the faster block sizes, if others than the first were tried."""
    return float(min(row["seconds"], row.get("tuned_seconds") or row["seconds"]))


def _kind(row: Row) -> str:
    """Mamba-2's scan of single tokens has no products: it moves states, as Mamba-1's does. And
    convolutions are not as fast as what moves states."""
    kind: str = row["kind"]
    if str(row.get("case")).startswith("causal_conv1d"):
        return "conv"
    return "scan" if kind == "ssd" and not row["flops"] else kind


def _is_product(row: Row) -> bool:
    """One row by a matrix: bound by memory, with operations."""
    return bool(row["kind"] == "memory" and row["flops"])
