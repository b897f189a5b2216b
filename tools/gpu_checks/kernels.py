"""Every operator at the sizes of the models, against its floor in bytes or operations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpu_checks.context import MODELS, Context
from sidewinder.config import ModelConfig
from sidewinder.ops import tuning
from sidewinder.ops.causal_conv1d import causal_conv1d
from sidewinder.ops.codec import CODECS, decode, encode, reduce
from sidewinder.ops.gated_rms_norm import gated_rms_norm
from sidewinder.ops.linear import linear
from sidewinder.ops.rms_norm import rms_norm
from sidewinder.ops.selective_scan import selective_scan
from sidewinder.ops.ssd_scan import ssd_scan
from sidewinder.projection.calibration import Calibration
from sidewinder.projection.devices import DEVICES, Device
from sidewinder.state.batch import Sequences, pack

PREFILL, DECODES = 8192, (1, 32)
LARGE_BYTES = 4e6
"""What moves less is mostly launch and latency, which the calibration has as `kernel_s`."""


@dataclass(frozen=True)
class Case:
    """One measurement: what runs, and what it must move or compute at least."""

    kind: str
    name: str
    run: Callable[[], object]
    bytes: float
    flops: float = 0.0


def run(context: Context) -> dict[str, Any]:
    """Ceilings of the device, all operators, and the calibration that follows."""
    read, rate = read_rate(context), gemm_rate(context)
    rows: list[dict[str, Any]] = []
    for model, case in all_cases(context):
        if not context.has(4):
            return report(context, read, rate, rows) | {"incomplete": "out of time"}
        rows.append({"model": model} | timed(context, case, read, rate))
    # Tuning compiles every candidate, which takes long: with what time is left.
    for row, (_, case) in zip(rows, all_cases(context), strict=True):
        if not context.dry_run and context.has(12):
            with tuning.measuring():
                tuned = timed(context, case, read, rate)
            row |= {f"tuned_{name}": tuned.get(name) for name in ("seconds", "percent_of_floor")}
    return report(context, read, rate, rows)


def all_cases(context: Context) -> Iterator[tuple[str, Case]]:
    """Every model's, then the codecs'."""
    for model in MODELS:
        for case in cases(context, context.config(model)):
            yield model, case
    for case in codec_cases(context):
        yield "any", case


def timed(context: Context, case: Case, read: float, rate: float) -> dict[str, Any]:
    """Time one case; a failing one reports its error."""
    row: dict[str, Any] = {"kind": case.kind, "case": case.name}
    try:
        seconds = context.seconds(case.run)
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}"}
    floor = max(case.bytes / read, case.flops / rate)
    return row | {
        "seconds": seconds, "bytes": case.bytes, "flops": case.flops, "floor_s": floor,
        "percent_of_floor": 100 * floor / seconds,
    }  # fmt: skip


def read_rate(context: Context) -> float:
    """Bytes per second of summing a block far beyond the caches."""
    block = torch.ones(context.pick(1 << 29, 1 << 16), device=context.device, dtype=context.dtype)
    return block.nbytes / context.seconds(lambda: block.sum())


def gemm_rate(context: Context) -> float:
    """FLOP/s of torch's own product at a shape of the models."""
    rows, width = context.pick(PREFILL, 64), context.pick(8192, 128)
    x, weight = (
        torch.randn(n, width, device=context.device, dtype=context.dtype) for n in (rows, width)
    )
    return 2.0 * rows * width * width / context.seconds(lambda: x @ weight.T)


def cases(context: Context, config: ModelConfig) -> Iterator[Case]:
    """The operators of one family, in prefill and in decode."""
    tokens = context.pick(PREFILL, 24)
    yield from linear_cases(context, config, tokens)
    shapes = [("prefill", tokens, 1), *((f"decode {n}", n, n) for n in DECODES)]
    for name, n_tokens, n_seqs in shapes:
        yield from mixer_cases(context, config, name, n_tokens, n_seqs)


def linear_cases(context: Context, config: ModelConfig, tokens: int) -> Iterator[Case]:
    out, inner = 2 * config.d_inner, config.d_model
    weight = normal(context, out, inner)
    for rows in (1, tokens):
        x = normal(context, rows, inner)
        moved = weight.nbytes + x.nbytes + rows * out * x.itemsize
        kind = "memory" if rows == 1 else "gemm"
        yield Case(
            kind, f"in_proj, {rows} rows", bound(linear, x, weight), moved, 2.0 * rows * out * inner
        )


def mixer_cases(
    context: Context, config: ModelConfig, name: str, tokens: int, n_seqs: int
) -> Iterator[Case]:
    """Norm, convolution and scan of a packed batch."""
    seqs, item, d = sequences(context, tokens, n_seqs), context.dtype.itemsize, config.d_inner
    hidden = normal(context, tokens, config.d_model)
    residual, gain = hidden.float(), torch.ones(config.d_model, device=context.device)
    gain = gain.to(context.dtype)
    yield Case(
        "memory", f"rms_norm, {name}", bound(rms_norm, hidden, gain, 1e-5, residual),
        hidden.numel() * (2 * item + 8),
    )  # fmt: skip
    x, z = normal(context, tokens, d), normal(context, tokens, d)
    taps, bias = normal(context, config.d_conv, d), normal(context, d)
    state = normal(context, n_seqs, config.d_conv - 1, d)
    yield Case(
        "scan", f"causal_conv1d, {name}", bound(causal_conv1d, x, taps, bias, state, seqs),
        2 * x.nbytes + 2 * state.nbytes,
    )  # fmt: skip
    if config.family == "mamba2":
        yield from mamba2_cases(context, config, name, x, z, seqs)
        return
    n = config.d_state
    b_c = normal(context, tokens, 2 * n)
    decay = -torch.rand(n, d, device=context.device)
    ones, ssm = torch.ones(d, device=context.device), torch.zeros(n_seqs, n, d, device=x.device)
    yield Case(
        "scan", f"selective_scan, {name}",
        bound(selective_scan, x, x, decay, b_c[:, :n], b_c[:, n:], ones, z, -ones, ssm, seqs),
        4 * x.nbytes + b_c.nbytes + 2 * ssm.nbytes,
    )  # fmt: skip


def mamba2_cases(
    context: Context, config: ModelConfig, name: str, x: Tensor, z: Tensor, seqs: Sequences
) -> Iterator[Case]:
    tokens, heads, n = len(x), config.n_heads, config.d_state
    b_c = normal(context, tokens, 2, config.n_groups, n)
    dt, ones = normal(context, tokens, heads), torch.ones(heads, device=x.device)
    group = torch.zeros(heads, dtype=torch.int64, device=x.device)
    state = torch.zeros(seqs.n_seqs, heads, n, config.head_dim, device=x.device)
    split = x.view(tokens, heads, -1)
    flops = 2.0 * tokens * (64 * (n + x.shape[1]) + 2 * x.shape[1] * n) if tokens > 64 else 0.0
    yield Case(
        "ssd", f"ssd_scan, {name}",
        bound(ssd_scan, split, dt, -ones, b_c[:, 0], b_c[:, 1], ones, -ones, state, seqs,
              (0.0, float("inf")), group),
        2 * x.nbytes + b_c.nbytes + dt.nbytes + 2 * state.nbytes, flops,
    )  # fmt: skip
    weight = normal(context, x.shape[1])
    size = x.shape[1] // config.n_groups
    yield Case(
        "memory", f"gated_rms_norm, {name}", bound(gated_rms_norm, x, z, weight, 1e-5, size),
        3 * x.nbytes,
    )  # fmt: skip


def codec_cases(context: Context) -> Iterator[Case]:
    """Encode; decode, sum and encode; decode: of a delta that four ranks sum."""
    x = normal(context, context.pick(2048, 8), context.pick(4096, 160))
    for codec in CODECS.values():
        message = encode(x, codec)
        parts, size = message.expand(4, -1).contiguous(), message.nbytes
        yield Case("codec", f"encode {codec.name}", bound(encode, x, codec), x.nbytes + size)
        yield Case("codec", f"reduce {codec.name}", bound(reduce, parts, codec), 5 * size)
        yield Case(
            "codec", f"decode {codec.name}", bound(decode, message[None], codec, x), x.nbytes + size
        )


def report(
    context: Context, read: float, rate: float, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Rows, ceilings, and the efficiencies by kind, relative to the data sheet."""
    return {
        "read_bytes_per_s": read,
        "gemm_flops_per_s": rate,
        "rows": rows,
        "calibration": {} if context.dry_run else calibration(context, rows),
    }


def calibration(context: Context, rows: list[dict[str, Any]]) -> dict[str, float]:
    """What `sidewinder plan --calibration` reads: medians by kind, and the cost of a kernel."""
    device = sheet(torch.cuda.get_device_name())
    if device is None:
        return {}
    values = {"kernel_s": kernel_cost(context)}
    for kind in ("gemm", "memory", "scan", "ssd", "codec"):
        reached = sorted(
            max(row["bytes"] / device.bytes_per_s, row["flops"] / device.flops(context.dtype))
            / min(row["seconds"], row.get("tuned_seconds") or row["seconds"])
            for row in rows
            if row["kind"] == kind and "seconds" in row and row["bytes"] > LARGE_BYTES
        )
        if reached and kind in Calibration.__dataclass_fields__:
            values[kind] = reached[len(reached) // 2]
    return values


def sheet(product: str) -> Device | None:
    """The data sheet of a product, if it is one that we know."""
    words = product.lower().replace(" ", "")
    if "a100" in words and "40gb" in words:
        return DEVICES["a100-40gb"]
    names = [name for name in DEVICES if name in words]
    return DEVICES[max(names, key=len)] if names else None


def kernel_cost(context: Context) -> float:
    """Seconds that a small kernel takes in a CUDA graph."""
    x, n = torch.zeros(256, device=context.device), 200
    graph = torch.cuda.CUDAGraph()
    x.add_(1)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(n):
            x.add_(1)
    return context.seconds(graph.replay) / n


def sequences(context: Context, tokens: int, n_seqs: int) -> Sequences:
    """A packed batch of equal sequences in slots of their own."""
    each = [[0] * (tokens // n_seqs)] * n_seqs
    return pack(each, list(range(n_seqs)), device=context.device).seqs


def normal(context: Context, *shape: int) -> Tensor:
    return torch.randn(*shape, device=context.device, dtype=context.dtype)


def bound(function: Callable[..., object], *args: object) -> Callable[[], object]:
    """The call as something to time."""
    return lambda: function(*args)
