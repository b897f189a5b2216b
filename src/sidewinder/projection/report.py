"""A projection as plain data and as text: what `sidewinder plan --gpu` shows."""

from dataclasses import asdict
from typing import Any

from sidewinder.planning import format_bytes, format_table
from sidewinder.projection.memory import project_memory
from sidewinder.projection.model import Load, Setting, Speed, StepTime, project, single
from sidewinder.projection.sums import EXACT, policies


def projection_report(setting: Setting, load: Load) -> dict[str, Any]:
    """Speed under every policy and memory, as JSON-able data.

    Returns:
        `policies`: per policy `ttft_s`, `tpot_s`, `output_tokens_per_s`, `speedup` (of output
        tokens per second over one rank, whether or not one rank has the memory), and the share of
        sums in both phases; `memory`; `one_rank_fits`; `calibration`: every constant with whether
        it was measured; `device`, `link`, `load`.

    Raises:
        ValueError: if the model cannot be split over `tp` ranks; names the valid sizes.
    """
    one = project(single(setting), load)
    names = policies(setting.dtype) if setting.tp > 1 else [EXACT]
    memory = project_memory(setting, load)
    return {
        "projected": True,
        "tp": setting.tp,
        "hide_sums": setting.hide_sums,
        "device": asdict(setting.device),
        "link": asdict(setting.link),
        "load": asdict(load),
        "policies": [_row(project(setting, load, name), one) for name in names],
        "memory": asdict(memory) | {"headroom": memory.headroom},
        "one_rank_fits": project_memory(single(setting), load).headroom >= 0,
        "calibration": {
            "source": setting.calibration.source,
            "values": setting.calibration.values(),
        },
    }


def _row(speed: Speed, one: Speed) -> dict[str, Any]:
    return {
        "all_reduce": str(speed.policy),
        "ttft_s": speed.ttft,
        "tpot_s": speed.tpot,
        "output_tokens_per_s": speed.output_tokens_per_s,
        "speedup": speed.output_tokens_per_s / one.output_tokens_per_s,
        "ttft_speedup": one.ttft / speed.ttft,
        "tpot_speedup": one.tpot / speed.tpot,
        "prefill_step": _parts(speed.prefill),
        "decode_step": _parts(speed.decode),
    }


def _parts(step: StepTime) -> dict[str, Any]:
    return {
        "total_s": step.total,
        "host_s": step.host,
        "work_s": step.work,
        "sums_s": step.sums,
        "share_of_sums": sum(step.sums.values()) / step.total,
    }


def format_projection(report: dict[str, Any]) -> str:
    """`projection_report`'s result as text."""
    load, device, link = report["load"], report["device"], report["link"]
    joined = f" over {link['title']}" if report["tp"] > 1 else ""
    header = (
        f"PROJECTED, not measured: {report['tp']} x {device['title']}{joined}; batch "
        f"{load['batch']}, {load['prompt']} + {load['output']} tokens"
        + (", sums hidden" if report["hide_sums"] else "")
    )
    return "\n".join([header, "", _speeds(report), "", _memory(report), "", _sources(report)])


def _speeds(report: dict[str, Any]) -> str:
    lines = [
        (row["all_reduce"], f"{1e3 * row['ttft_s']:.1f} ms", f"{1e3 * row['tpot_s']:.2f} ms",
         f"{row['output_tokens_per_s']:.0f}", f"{row['speedup']:.2f}x",
         f"{100 * row['prefill_step']['share_of_sums']:.0f} %",
         f"{100 * row['decode_step']['share_of_sums']:.0f} %")
        for row in report["policies"]
    ]  # fmt: skip
    return format_table(
        ("all-reduce", "TTFT", "TPOT", "output tokens/s", "of one rank", "sums in prefill",
         "in decode"),
        lines,
    )  # fmt: skip


def _memory(report: dict[str, Any]) -> str:
    memory = report["memory"]
    parts = ", ".join(
        f"{name} {format_bytes(int(memory[name]))}"
        for name in ("weights", "state", "kv", "activations", "reserve")
        if memory[name]
    )
    headroom = memory["headroom"]
    left = (
        f"{format_bytes(int(headroom))} left"
        if headroom >= 0
        else f"{format_bytes(int(-headroom))} TOO MUCH: the load does not fit"
    )
    note = "" if report["one_rank_fits"] else "\none rank would not have the memory for this load"
    return f"memory per rank of {format_bytes(int(memory['device']))}: {parts}; {left}{note}"


def _sources(report: dict[str, Any]) -> str:
    values = report["calibration"]["values"]
    assumed = [name for name, each in values.items() if not each["measured"]]
    measured = [name for name, each in values.items() if each["measured"]]
    lines = [f"link: {report['link']['source']}"] if report["tp"] > 1 else []
    if measured:
        lines.append(f"measured ({report['calibration']['source']}): {', '.join(measured)}")
    if assumed:
        shown = ", ".join(_constant(name, values[name]["value"]) for name in assumed)
        lines.append(f"assumed (docs/projection.md): {shown}")
    return "\n".join(lines)


def _constant(name: str, value: float) -> str:
    """A constant of the calibration with its unit: its name says seconds, bytes, or a share."""
    if name.endswith("_s"):
        return f"{name.removesuffix('_s')} {value * 1e6:g} us"
    if name.endswith("_bytes"):
        return f"{name.removesuffix('_bytes')} {format_bytes(int(value))}"
    return f"{name} {100 * value:g} %"
