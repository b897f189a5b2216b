"""Compile the suite's kernels on a machine without a card, into a folder that Triton looks into.

Every candidate of every case, and what the models launch in the engine and, of four, as shards; not
what the tests launch, which have many small shapes.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from gpu_checks.cases import all_cases
from gpu_checks.compile import MOST_CANDIDATES
from gpu_checks.context import HYBRIDS, INTEGER_MODELS, MODELS, PREFILL, Context
from gpu_checks.draft_cases import DRAFT_MODELS, WRONG_DRAFTS
from sidewinder.config import EngineConfig
from sidewinder.engine.ahead import launched_by, target_of
from sidewinder.ops import tuning
from sidewinder.ops.ahead import Specialisation, compile_all, unique
from sidewinder.ops.dispatch import forced
from sidewinder.ops.launching import EARLY_VARIABLE, recording, slots_at_rest
from sidewinder.projection.devices import Device, device_of
from sidewinder.quantise import BITS

SHARDS = (1, 2, 4, 8)


def run(folder: Path, gpu: str) -> str:
    """Fill `folder` for the GPU; a line that says with how much."""
    device = device_of(gpu)
    context = Context(dry_run=False, budget_s=math.inf, ahead=True)
    wanted = launched_by_cases(context, device) | launched_by_models(context, device)
    cores = os.cpu_count() or 1
    compiling = compile_all(list(wanted), device.capability, folder, cores)
    found = [each.found for each in tqdm(compiling, "kernels", len(wanted), unit="")]
    return (
        f"{found.count(False)} kernels compiled, {found.count(True)} found, in {folder.resolve()}"
    )


@torch.inference_mode()
@slots_at_rest()  # as in gpu_checks.kernels
def launched_by_cases(context: Context, device: Device) -> dict[Specialisation, None]:
    """Every case with default block sizes, then with every candidate."""
    found: dict[Specialisation, None] = {}
    with recording(target_of(device)) as launches, forced("triton"), tuning.gpu_named(""):
        for _, case in all_cases(context):
            run_case = case.make()
            run_case()
            for index in range(MOST_CANDIDATES):
                with tuning.candidate(index):
                    try:
                        run_case()
                    except IndexError:  # Kernels before the one that has fewer were recorded.
                        break
            found |= unique(launches)
            launches.clear()
    return found


def launched_by_models(context: Context, device: Device) -> dict[Specialisation, None]:
    """Engines of one rank, also with kernels that wait for each other or weights in int8 and int4,
    and the shards."""
    found: dict[Specialisation, None] = {}
    for model in (*MODELS, *HYBRIDS):
        for size in SHARDS if model in MODELS else SHARDS[:1]:
            engine = EngineConfig(
                model, size, dtype=context.values(model)["dtype"], max_step_tokens=PREFILL,
                speculate=WRONG_DRAFTS if size == 1 and model in DRAFT_MODELS else 0,
            )  # fmt: skip
            for early in ("1", "0") if size == 1 else ("1",):
                with early_launch(early):
                    found |= dict.fromkeys(launched_by(engine, context.config(model), device, True))
        for weight_dtype in BITS if model in INTEGER_MODELS else ():
            engine = EngineConfig(
                model, dtype=context.values(model)["dtype"], weight_dtype=weight_dtype,
                max_step_tokens=PREFILL,
            )  # fmt: skip
            with early_launch("1"):
                found |= dict.fromkeys(launched_by(engine, context.config(model), device, True))
    return found


@contextmanager
def early_launch(setting: str) -> Iterator[None]:
    """Whether kernels start early, inside the `with` block."""
    before = os.environ.get(EARLY_VARIABLE)
    os.environ[EARLY_VARIABLE] = setting
    try:
        yield
    finally:
        del os.environ[EARLY_VARIABLE]
        if before is not None:
            os.environ[EARLY_VARIABLE] = before
