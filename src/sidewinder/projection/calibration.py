"""How much of a device's peaks the kernels reach: measured where there is a file, else assumed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from sidewinder.projection.devices import device_of_product
from sidewinder.projection.timed_kernels import EFFICIENCIES, constants_of


@dataclass(frozen=True)
class Calibration:
    """Efficiencies (of the peak, at most 1) and fixed costs.

    Attributes:
        gemm: matrix products with many rows, of the FLOP rate.
        memory: products with few rows, norms and the like, of the memory's bandwidth.
        row: products with one row, of the bandwidth.
        conv: convolutions, of the bandwidth.
        scan: selective scan and state updates, of the bandwidth.
        attention: that of single tokens over stored keys and values, of the bandwidth.
        special: exponentials of the scan, of the special units' rate. (By the instructions of our
            kernels: 0.87 to 1 of the cycles; some of it is lost to waiting.)
        ssd: Mamba-2's scan in chunks, of the FLOP rate or the bandwidth, whichever bounds it.
        codec: encode and decode, of the bandwidth.
        kernel_s: what a kernel costs beyond its work, in a CUDA graph.
        product_s: the same of a product, whose sums wait for the last of its loads.
        row_s: the same of a product with one row.
        update_s: the least that a scan of single tokens takes, whose loads follow each other.
        skew_s: what ranks wait for each other at a collective, beyond its exchanges.
        host_s: what a step costs on the host: scheduling, messages to ranks, sampled tokens back.
        launch_s: what a kernel's launch costs on the host in a step that no graph holds; the GPU
            waits for it where the kernels are shorter.
        reserve_bytes: per device for the driver's context, libraries and fragmentation.
        source: where the values come from.
        measured: names of the fields that were measured; all others are assumed.
    """

    gemm: float = 0.7
    memory: float = 0.8
    row: float = 0.8
    conv: float = 0.6
    scan: float = 0.6
    attention: float = 0.6
    special: float = 0.8
    ssd: float = 0.35
    codec: float = 0.6
    kernel_s: float = 2.0e-6
    product_s: float = 3.5e-6
    row_s: float = 2.5e-6
    update_s: float = 5.5e-6
    skew_s: float = 0.0
    host_s: float = 2.0e-4
    launch_s: float = 4.4e-5
    reserve_bytes: float = 1.5 * (1 << 30)
    source: str = "none"
    measured: frozenset[str] = field(default=frozenset())

    def with_measured(self, values: Mapping[str, float], source: str) -> "Calibration":
        """These values with measured ones in their place.

        Raises:
            ValueError: for a name or value that cannot be.
        """
        for name, value in values.items():
            if name not in NAMES:
                raise ValueError(f"{source}: {name!r} is no calibration; known: {', '.join(NAMES)}")
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or value < 0 or (value == 0 and name in EFFICIENCIES):
                raise ValueError(f"{source}: {name}={value!r} is not a positive number")
        measured = self.measured | set(values)
        changed: dict[str, Any] = dict(values)
        return replace(self, **changed, source=source, measured=measured)

    def values(self) -> dict[str, Any]:
        """Every value with whether it was measured, for reports."""
        return {
            name: {"value": getattr(self, name), "measured": name in self.measured}
            for name in NAMES
        }


NAMES = tuple(each.name for each in fields(Calibration) if each.name not in ("source", "measured"))


def read_calibration(file: Path) -> Calibration:
    """The assumed values, overruled by a file of measured ones.

    Args:
        file: JSON with `calibration`, an object of the fields of `Calibration`, as
            `tools/gpu_suite.py` writes it. Where it also holds the suite's timed kernels, the
            constants are worked out of them again, as they are now understood.

    Raises:
        ValueError: if the file cannot be read or holds something else.
    """
    try:
        content = json.loads(file.read_text())
        values = content["calibration"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--calibration {file} is not a readable calibration: {error!r}"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"--calibration {file}: 'calibration' is an object of names and numbers")
    return Calibration().with_measured(values | _of_kernels(content, file), str(file))


def _of_kernels(content: dict[str, Any], file: Path) -> dict[str, float]:
    """The constants of kernels that a card's suite timed; none of a file that is no such."""
    try:
        rows = content.get("sections", {}).get("kernels", {}).get("rows", [])
        device = device_of_product(content.get("machine", {}).get("gpu") or "")
        return {} if device is None else constants_of(rows, device, torch.bfloat16)
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"--calibration {file}: its timed kernels are not as tools/gpu_suite.py writes them: "
            f"{error!r}"
        ) from error
