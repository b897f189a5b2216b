"""Every operator at the sizes of the models, against its floor in bytes or operations."""

from typing import Any

import torch

from gpu_checks.case import Case
from gpu_checks.cases import all_cases
from gpu_checks.context import HYBRIDS, PREFILL, Context
from gpu_checks.fast_kernels import mamba_ssm_rows
from sidewinder.bench.roofline import model_work
from sidewinder.config import ModelConfig
from sidewinder.ops import tuning
from sidewinder.ops.launching import slots_at_rest
from sidewinder.projection.devices import device_of_product
from sidewinder.projection.timed_kernels import constants_of


@slots_at_rest()
def run(context: Context) -> dict[str, Any]:
    """Ceilings of the device, all operators, and the calibration that follows.

    As in a step, equal kernels in a chain start early. (What they read may be half written by the
    one before where a case has one set of tensors: only their times count here.)
    """
    read, rate = read_rate(context), gemm_rate(context)
    rows: list[dict[str, Any]] = []
    for model, case in all_cases(context):
        if not context.has(6):
            return report(context, read, rate, rows) | {"incomplete": "out of time"}
        row = {"model": model} | timed(context, case, read, rate)
        # At once: some kernels are in no step before they have been tuned.
        if not context.dry_run and "error" not in row and context.has(10):
            row |= tuned(context, case, read, rate)
        rows.append(row)
        context.keep({"read_bytes_per_s": read, "gemm_flops_per_s": rate, "rows": rows})
        if any(name.endswith("error") and value for name, value in row.items()):
            check_that_the_gpu_lives(context, case)
    rows += mamba_ssm_rows(context)
    return report(context, read, rate, rows)


def check_that_the_gpu_lives(context: Context, case: Case) -> None:
    """After a fault nothing more runs in this process.

    Raises:
        RuntimeError: then, so that the cause stands there and not its echo in every later row.
    """
    if context.device.type == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise RuntimeError(f"no case after {case.name!r} could run: {error}") from error


def timed(context: Context, case: Case, read: float, rate: float) -> dict[str, Any]:
    """Time one case; a failing one reports its error."""
    row: dict[str, Any] = {"kind": case.kind, "case": case.name}
    try:
        seconds = context.seconds(*(case.make() for _ in range(context.copies(case.bytes))))
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}"}
    floor = max(case.bytes / read, case.flops / rate)
    return row | {
        "seconds": seconds, "bytes": case.bytes, "flops": case.flops, "special": case.special,
        "floor_s": floor, "percent_of_floor": 100 * floor / seconds,
    }  # fmt: skip


def tuned(context: Context, case: Case, read: float, rate: float) -> dict[str, Any]:
    """The same with the block sizes that are fastest here, which the table then keeps."""
    try:
        with tuning.measuring():
            case.make()()
    except Exception as error:
        return {"tuning_error": f"{type(error).__name__}: {error}"}
    row = timed(context, case, read, rate)
    return {f"tuned_{name}": row.get(name) for name in ("seconds", "percent_of_floor", "error")}


def read_rate(context: Context) -> float:
    """Bytes per second of summing a block far beyond the caches."""
    block = torch.ones(context.pick(1 << 30, 1 << 16), device=context.device, dtype=context.dtype)
    return block.nbytes / context.seconds(lambda: block.sum())


def gemm_rate(context: Context) -> float:
    """FLOP/s of torch's own product of large square matrices."""
    return 1 / _product_seconds(context, context.pick(8192, 128), context.pick(8192, 128))


def model_gemm_rate(context: Context, config: ModelConfig) -> float:
    """FLOP/s that torch's own products reach on the matrices of a model's prefill."""
    gemms = model_work(config, context.dtype.itemsize).gemms
    flops = sum(out * inner * count for out, inner, count in gemms)
    return flops / sum(
        out * inner * count * _product_seconds(context, out, inner) for out, inner, count in gemms
    )


def _product_seconds(context: Context, out: int, inner: int) -> float:
    """Seconds per operation of the product of many rows with an `[out, inner]` matrix."""
    rows = context.pick(PREFILL, 64)
    x, weight = (
        torch.randn(n, inner, device=context.device, dtype=context.dtype) for n in (rows, out)
    )
    return context.seconds(lambda: x @ weight.T, repeats=5) / (2.0 * rows * out * inner)


def report(
    context: Context, read: float, rate: float, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Rows, ceilings, and the efficiencies by kind, relative to the data sheet."""
    return {
        "read_bytes_per_s": read,
        "gemm_flops_per_s": rate,
        "rows": rows,
        "calibration": {} if context.dry_run else calibration(context, of_models(rows)),
    }


def of_models(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that the projection's constants are of: they are compared from card to card."""
    return [row for row in rows if row["model"] not in HYBRIDS]


def calibration(context: Context, rows: list[dict[str, Any]]) -> dict[str, float]:
    """What `sidewinder plan --calibration` reads: medians by kind, and the cost of a kernel."""
    device = device_of_product(torch.cuda.get_device_name())
    if device is None:
        return {}
    # A kernel that does nothing takes no time to start: real ones, if there are any, cost more.
    return {"kernel_s": kernel_cost(context)} | constants_of(rows, device, context.dtype)


def kernel_cost(context: Context) -> float:
    """Seconds that a small kernel takes in a CUDA graph."""
    x = torch.zeros(256, device=context.device)
    return context.seconds(*[lambda: x.add_(1)] * 200)
