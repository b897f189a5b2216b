"""The projection beside what one card measured: the error of each figure of its suite.

`tools/gpu_suite.py` writes the result. Efficiencies are those of its timed kernels; whole models
and single shards, which were not fitted, are predicted from them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.projection.calibration import Calibration, read_calibration
from sidewinder.projection.devices import Device, device_of_product
from sidewinder.projection.links import Link
from sidewinder.projection.model import Load, Setting, project, step_time
from sidewinder.projection.sums import EXACT, Wire, sum_times
from sidewinder.projection.work import Step

MAX_STEP_TOKENS = 8192
"""Of the suite's engines."""

NAMED_LOADS = {"latency": "", "short prompt": "short prompt, ", "batch 32": "batch 32, "}
"""The suite's loads, and what comes before the names of their figures."""

SHARD_CONTEXT = 13
"""Tokens that a row of a shard's decode step attends to: it is its sequence's thirteenth."""


@dataclass(frozen=True)
class Suite:
    """A card's result.

    Attributes:
        name: of the file, without its folder.
        gpu: the card, as its driver calls it.
        device: its data sheet.
        calibration: its efficiencies and fixed costs.
        add_s: seconds of a kernel that adds to a few numbers in place, in a CUDA graph. A model's
            kernels take longer (`Calibration.kernel_s`); those of a shard's sums are just that.
        sections: what was measured, by name.
    """

    name: str
    gpu: str
    device: Device
    calibration: Calibration
    add_s: float
    sections: Mapping[str, Any]


class LocalSums(Wire):
    """What stands for sums and gathers where a shard runs alone, as `LocalCost` of the suite does:
    each of the group's parts is added in float32, read from this device's own memory.

    No link has this shape: a two-shot sum would read less, and here every part is a kernel.
    """

    def exact(self, size: float, ranks: int) -> tuple[float, float, str]:
        """The first part becomes float32, every other is added, the total becomes 16 bits again:
        2 + 4, 4 + 2 + 4 and 4 + 2 bytes for each 2 of the message."""
        moved = size / 2 * (6 + 10 * (ranks - 1) + 6)
        return self._copied(ranks + 1, moved), 0.0, "local copies"

    def gather(self, size: float, ranks: int) -> tuple[float, float, str]:  # noqa: ARG002
        """Written once; what is read is one column."""
        return self._copied(1, size), 0.0, "local copies"

    def _copied(self, kernels: int, moved: float) -> float:
        rate = self.device.bytes_per_s * self.calibration.memory
        return kernels * self.calibration.kernel_s + moved / rate


def read_suite(file: Path) -> Suite:
    """A suite's result, of a card whose data sheet is known.

    Raises:
        ValueError: if the file cannot be read, was written without a card or on an unknown one, or
            has no timed kernels.
    """
    try:
        result = json.loads(file.read_text())
        gpu, sections = result["machine"]["gpu"], dict(result["sections"])
        dry_run = result["versions"]["dry_run"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a result of tools/gpu_suite.py: {error!r}") from error
    if dry_run or not isinstance(gpu, str):
        raise ValueError(f"{file} was written without a card; its figures mean nothing")
    device = device_of_product(gpu)
    if device is None:
        raise ValueError(f"{file}: the data sheet of {gpu!r} is not in projection/devices.py")
    calibration = read_calibration(file)
    if not calibration.measured:
        why = sections.get("kernels", {}).get("error", "the section 'kernels' is missing")
        raise ValueError(f"{file} holds no efficiencies ({why}); run that section again")
    noted = {"kernel_s": result["calibration"].get("kernel_s", calibration.kernel_s)}
    add_s = Calibration().with_measured(noted, str(file)).kernel_s
    return Suite(file.name, gpu, device, calibration, add_s, sections)


def compare_suite(suite: Suite) -> list[dict[str, Any]]:
    """Every figure that was measured, with what is projected for it.

    Returns:
        Rows of `model`, `tp`, `what`, `measured_s`, `projected_s` and `error`, which is
        projected / measured - 1. What failed or was left out has no row.

    Raises:
        ValueError: for rows that the suite does not write.
    """
    return [*_whole_models(suite), *_shards(suite)]


def _whole_models(suite: Suite) -> Iterator[dict[str, Any]]:
    """TTFT, TPOT and a batch's time of the engine on one rank."""
    for row in _rows(suite, "end_to_end"):
        for name, prefix in NAMED_LOADS.items():
            measured = row.get(f"{name}, graphs auto")
            if measured is None:
                continue
            load = _load(suite, measured)
            speed = project(setting_of(suite, row, 1), load)
            whole = speed.ttft + (load.output - 1) * speed.tpot
            figures = [("TTFT", "prefill_s", speed.ttft)]
            # In a batch some decode while others are still in prefill: only its end says something.
            if load.batch == 1:
                figures.append(("TPOT", "tpot_s", speed.tpot))
            else:
                figures.append(("whole", "total_s", whole))
            for what, key, projected in figures:
                spread = measured.get(key)
                if spread is not None:
                    seconds = _positive(suite, spread, "median")
                    yield _compared(row["model"], 1, prefix + what, seconds, projected)


def _shards(suite: Suite) -> Iterator[dict[str, Any]]:
    """Prefill and decode steps of the first rank alone."""
    for row in _rows(suite, "shards"):
        tp = row.get("tp")
        if not isinstance(tp, int):
            raise ValueError(f"{suite.name}: a shard of {row['model']} has tp={tp!r}")
        setting = setting_of(suite, row, tp)
        for key in row:
            decode = re.fullmatch(r"decode_(\d+)_s", key)
            if decode is not None:
                n = int(decode[1])
                what, step = f"decode {n}", Step(n, n, n, SHARD_CONTEXT)
            elif key == "prefill_s":
                tokens = round(_positive(suite, row, "prefill_tokens"))
                what, step = "prefill", Step(tokens, 1, 0, tokens / 2)
            else:
                continue
            measured = _positive(suite, row, key)
            projected = shard_seconds(setting, step, suite.add_s)
            yield _compared(row["model"], tp, what, measured, projected)


def shard_seconds(setting: Setting, step: Step, add_s: float) -> float:
    """One step of a shard alone, whose sums are local copies of kernels that take `add_s`.

    A decode step is started and waited for by itself, so nothing hides the host; a prefill's layers
    are called without an engine.
    """
    adding = replace(setting.calibration, kernel_s=add_s)
    wire = LocalSums(setting.device, setting.link, adding)
    host = setting.calibration.host_s if step.is_decode else 0.0
    work = step_time(setting, step, EXACT).work
    sums = sum_times(setting.config, setting.tp, setting.dtype, step, EXACT, wire)
    return sum(work.values()) + sum(each.count * each.seconds for each in sums) + host


def setting_of(suite: Suite, row: Mapping[str, Any], tp: int) -> Setting:
    """What a row of the suite ran, as something to project."""
    model = row["model"]
    if model not in SHAPES:
        raise ValueError(f"{suite.name}: {model!r} is no published shape")
    config = parse_model_config(SHAPES[model] | {"dtype": "bfloat16"})
    nowhere = Link("none", "none", suite.device.bytes_per_s, 0.0, "local copies")
    return Setting(config, tp, torch.bfloat16, suite.device, nowhere, suite.calibration)


def _rows(suite: Suite, section: str) -> Iterator[dict[str, Any]]:
    """The rows of a section that hold a model's figures."""
    for row in suite.sections.get(section, {}).get("rows", []):
        if not isinstance(row, dict) or "model" not in row:
            raise ValueError(f"{suite.name}: a row of {section!r} names no model: {row!r}")
        if "error" not in row and "skipped" not in row:
            yield row


def _load(suite: Suite, measured: Mapping[str, Any]) -> Load:
    """The requests of a measured run."""
    load = measured.get("load", {})
    batch, prompt, output = (
        round(_positive(suite, load, name)) for name in ("batch", "prompt_tokens", "output_tokens")
    )
    return Load(batch, prompt, output, MAX_STEP_TOKENS)


def _positive(suite: Suite, values: Mapping[str, Any], key: str) -> float:
    """A positive number of a result."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ValueError(f"{suite.name}: {key}={value!r} is not a positive number")
    return float(value)


def _compared(model: str, tp: int, what: str, measured: float, projected: float) -> dict[str, Any]:
    return {
        "model": model, "tp": tp, "what": what, "measured_s": measured,
        "projected_s": projected, "error": projected / measured - 1,
    }  # fmt: skip
