"""Where the time of a step goes, kernel by kernel: what to make faster next."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from gpu_checks.context import MODELS, Context
from gpu_checks.shards import decode_step, prefill_batch, prepared

STEPS = 5
MOST_KERNELS = 25
"""Of each step, those that take longest."""


def run(context: Context) -> dict[str, Any]:
    """A decode step at batch 1 and 32, and a prefill step, of one rank alone."""
    rows = []
    for model in MODELS:
        if not context.has(8):
            rows.append({"model": model, "skipped": "out of time"})
            continue
        try:
            rows += profiles(context, model)
        except Exception as error:
            rows.append({"model": model, "error": f"{type(error).__name__}: {error}"})
        context.keep({"rows": rows})
    return {"rows": rows}


@torch.inference_mode()
def profiles(context: Context, model: str) -> list[dict[str, Any]]:
    """One row per kind of step."""
    built, pool = prepared(context, model, 1)
    batch = prefill_batch(context, built.config)
    steps: dict[str, Callable[[], object]] = {
        "decode 1": decode_step(context, built, pool, 1),
        "decode 32": decode_step(context, built, pool, context.pick(32, 3)),
        f"prefill {batch.seqs.n_tokens}": lambda: built.forward(batch, pool),
    }
    return [{"model": model, "step": name} | profile(context, run) for name, run in steps.items()]


def profile(context: Context, run: Callable[[], object]) -> dict[str, Any]:
    """Microseconds a step, all in all and by kernel."""
    run()
    on_gpu = context.device.type == "cuda"
    kinds = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    if on_gpu:
        torch.cuda.synchronize()
    with torch.profiler.profile(activities=kinds) as trace:
        for _ in range(STEPS):
            run()
        if on_gpu:
            torch.cuda.synchronize()
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kernels = sorted(
        (
            {"kernel": each.key[:120], "calls": each.count / STEPS,
             "us": float(getattr(each, attribute)) / STEPS}
            for each in trace.key_averages()
        ),
        key=lambda each: -each["us"],
    )  # fmt: skip
    return {
        "kernels_us": sum(each["us"] for each in kernels),
        "step_us": 1e6 * context.eager_seconds(run, 10),
        "kernels": kernels[:MOST_KERNELS],
    }
