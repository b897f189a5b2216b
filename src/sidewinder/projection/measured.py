"""The projection beside what was measured: fitted to two results, judged on the others.

Results are those of `sidewinder bench latency` on CPUs, which carry the machine's own bandwidth and
matrix rate from the same run, so that the machine is a `Device` like any other.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sidewinder.bench.shapes import SHAPES
from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.parallel.devices import DTYPES
from sidewinder.projection.calibration import Calibration
from sidewinder.projection.devices import Device
from sidewinder.projection.links import Link
from sidewinder.projection.model import Load, Setting, project
from sidewinder.sharding.traffic import collectives_of

CPU_START = Calibration(
    special=0.5, kernel_s=8e-6, product_s=8e-6, row_s=8e-6, update_s=0.0, host_s=4e-4, launch_s=0.0
)
"""Before the fit: calls cost more than on a GPU under a graph."""

CPU_SPECIAL_PER_S = 4e9
"""Exponentials per second of a core with AVX2; assumed, the fit has no figure for it."""

ROUNDS = 60
"""Of the fit; each brings both figures nearer by a constant factor."""


def device_of_result(result: dict[str, Any]) -> Device:
    """One rank's share of the machine that made `result`: ranks drink from one memory."""
    ceilings, ranks = result["ceilings"], result["engine"]["tp"]
    flops = ceilings["gemm_flops_per_s"] / ranks
    return Device(
        name="cpu",
        title=f"{result['machine']['cpu']}, {result['engine']['threads']} threads per rank",
        memory_bytes=0.0,
        bytes_per_s=ceilings["read_bytes_per_s"] / ranks,
        flops_16bit=flops,
        flops_32bit=flops,
        special_per_s=CPU_SPECIAL_PER_S * result["engine"]["threads"],
        cuts_scans=False,
        fuses_scans=False,
    )


def setting_of_result(result: dict[str, Any], link: Link, calibration: Calibration) -> Setting:
    """What `result` ran, as something to project."""
    return Setting(
        config=parse_model_config(SHAPES[result["model"]]),
        tp=result["engine"]["tp"],
        dtype=DTYPES[result["engine"]["dtype"]],
        device=device_of_result(result),
        link=link,
        calibration=calibration,
        looks_ahead=False,
    )


def load_of_result(result: dict[str, Any]) -> Load:
    """The requests of `result`."""
    load = result["load"]
    return Load(
        load["batch"],
        load["prompt_tokens"],
        load["output_tokens"],
        result["engine"]["max_step_tokens"],
    )


def fit(
    single: dict[str, Any],
    several: dict[str, Any] | None,
    link: Link,
    start: Calibration = CPU_START,
) -> Calibration:
    """`start` with the constants with which measured times come out.

    Args:
        single: of one rank: `gemm` from its prefill, `memory` from its TPOT.
        several: of more ranks, if there is one: `skew_s` from its TPOT.
        link: between ranks.
        start: all other constants.
    """
    load, gemm, memory = load_of_result(single), start.gemm, start.memory
    for _ in range(ROUNDS):
        tried = replace(start, gemm=gemm, memory=memory)
        speed = project(setting_of_result(single, link, tried), load)
        gemm *= speed.ttft / single["prefill_s"]["median"]
        memory *= speed.tpot / single["tpot_s"]["median"]
    fitted = start.with_measured({"gemm": gemm, "memory": memory}, _name(single))
    if several is None:
        return fitted
    speed = project(setting_of_result(several, link, fitted), load_of_result(several))
    setting = setting_of_result(several, link, fitted)
    n_sums = sum(each.layers for each in collectives_of(setting.config, setting.tp, setting.dtype))
    skew = max(0.0, several["tpot_s"]["median"] - speed.tpot) / n_sums
    return fitted.with_measured({"skew_s": skew}, f"{_name(single)}, {_name(several)}")


def _name(result: dict[str, Any]) -> str:
    return f"{result['model']} at tp={result['engine']['tp']}"


def compare(
    results: Sequence[dict[str, Any]], link: Link, calibration: Calibration
) -> list[dict[str, Any]]:
    """Projected beside measured seconds of each result; `error` is projected / measured - 1."""
    rows = []
    for result in results:
        speed = project(setting_of_result(result, link, calibration), load_of_result(result))
        row: dict[str, Any] = {
            "model": result["model"],
            "tp": result["engine"]["tp"],
            "date": result["machine"].get("date"),
        }
        for name, projected, key in (
            ("ttft", speed.ttft, "prefill_s"),
            ("tpot", speed.tpot, "tpot_s"),
        ):
            measured = result[key]["median"]
            row[name] = {
                "measured_s": measured,
                "projected_s": projected,
                "error": projected / measured - 1,
            }
        rows.append(row)
    return rows
