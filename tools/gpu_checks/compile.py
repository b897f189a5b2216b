"""Compile every candidate of the tuned kernels, many at a time, into Triton's cache on disk.

What follows then finds its kernels there: one after the other they would take minutes.
"""

import os
import time
from multiprocessing import TimeoutError as NotReady
from multiprocessing import get_context
from typing import Any

import torch

from gpu_checks.cases import all_cases
from gpu_checks.context import Context
from sidewinder.ops import tuning
from sidewinder.ops.launching import slots_at_rest

PROCESSES = 14
MOST_CANDIDATES = 16
PREFIXES = ("selective_scan, prefill", "selective_scan, 16", "ssd_scan, prefill",
            "causal_conv1d, prefill", "prompt_attention", "paged_attention", "1 row by",
            "32 rows by", "int8, 1 row by", "int8, 32 rows by", "int8, 256 rows by",
            "int4, 1 row by", "int4, 32 rows by", "int4, 256 rows by",
            "selective_scan, decode", "projected_scan, decode", "ssd_scan, decode",
            "causal_conv1d, decode", "8 drafts, ")  # fmt: skip
"""Cases whose kernels have candidates; those that compile longest first."""


def run(context: Context) -> dict[str, Any]:
    """One row per case and candidate: seconds, or what went wrong."""
    jobs = [(name, index) for name in cases_of(context) for index in range(MOST_CANDIDATES)]
    if context.dry_run:
        return {"rows": [try_candidate(context, *jobs[0]) or {}]}
    workers = max(1, min(PROCESSES, (os.cpu_count() or 2) - 2))
    rows = []
    with get_context("spawn").Pool(workers) as pool:
        pending = [pool.apply_async(try_candidate, (context, *job)) for job in jobs]
        for (name, index), each in zip(jobs, pending, strict=True):
            try:
                rows.append(each.get(timeout=max(0.0, context.left() - 2)))
            except NotReady:
                rows.append({"case": name, "candidate": index, "skipped": "out of time"})
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                rows.append({"case": name, "candidate": index, "error": text})
            context.keep({"rows": [row for row in rows if row is not None]})
    return {"processes": workers, "rows": [row for row in rows if row is not None]}


def cases_of(context: Context) -> dict[str, Any]:
    """The first case of every name; the sizes of most other models are no constants of a kernel."""
    by_name: dict[str, Any] = {}
    for _, case in all_cases(context):
        by_name.setdefault(case.name, case)
    found: dict[str, Any] = {}
    for prefix in PREFIXES:
        same = {name: case for name, case in by_name.items() if name.startswith(prefix)}
        # Matrices differ in numbers only, but for the smallest, whose width is no multiple of 16.
        found |= dict(list(same.items())[:1]) if "row" in prefix else same
    return found


def try_candidate(context: Context, name: str, index: int) -> dict[str, Any] | None:
    """Run one case with one candidate, in a process of its own; None if there is no such one."""
    started = time.monotonic()
    run_case = cases_of(context)[name].make()
    try:
        with tuning.candidate(index), slots_at_rest():
            run_case()
    except IndexError:
        return None
    if context.device.type == "cuda":
        torch.cuda.synchronize()
    return {"case": name, "candidate": index, "s": time.monotonic() - started}
