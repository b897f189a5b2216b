"""The machine's own ceilings, measured in the same run as what is compared with them.

Two floors bound a model's step: the bytes it must read over the memory's read bandwidth, and the
operations of its matrix products over the rate at which torch itself multiplies these shapes. Ranks
share one memory, so `tp` processes measure at the same time and their rates are added.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any

import torch

from sidewinder.config import ModelConfig
from sidewinder.quantise import rounded_bits, rounded_bytes
from sidewinder.sharding.plan import parameter_shapes, passes

NO_PRODUCTS = ("embedding.weight", ".conv.weight", ".A_log")
"""Of the tensors with two dimensions: those that are no matrices of products."""

READ_BYTES = 512 << 20
"""Bytes that one process reads per pass: far beyond any cache."""


@dataclass(frozen=True)
class ModelWork:
    """What a model asks of the machine.

    Attributes:
        gemms: distinct weight matrices as (out, in, count); count is per token of prefill, so of
            experts those count that a token has.
        flops_per_token: of all matrix products without `lm_head` (which runs once per sequence).
        bytes_per_decode_step: weight bytes that a decode step of one token must read, `lm_head`
            included.
    """

    gemms: tuple[tuple[int, int, int], ...]
    flops_per_token: int
    bytes_per_decode_step: int


def model_work(config: ModelConfig, element_bytes: int, weight_dtype: str = "auto") -> ModelWork:
    """Matrix shapes, operations and bytes of `config`.

    Args:
        config: the architecture.
        element_bytes: of a matrix element that is not rounded.
        weight_dtype: "auto", or what the large matrices are rounded to (`quantise.BITS`).
    """
    gemms = _layer_gemms(config)
    n_bytes: Fraction | int = 0
    for name, shape in parameter_shapes(replace(config, tie_embeddings=False)).items():
        if len(shape) == 2 and not name.endswith(NO_PRODUCTS):
            bits = rounded_bits(name, weight_dtype)
            each = element_bytes * prod(shape) if bits is None else rounded_bytes(shape, bits)
            n_bytes += each * passes(config, name)
    elements = sum(out * inner * count for out, inner, count in gemms)
    return ModelWork(tuple(gemms), 2 * elements, int(n_bytes))


def _layer_gemms(config: ModelConfig) -> list[tuple[int, int, int]]:
    n, d = len(config.mixer_layers), config.d_model
    if config.is_mamba2:
        groups = 2 * config.n_groups * config.d_state
        rows = 2 * config.d_inner + groups + config.n_heads
        gemms = [(rows, d, n), (d, config.d_inner, n)]
    else:
        low = config.dt_rank + 2 * config.d_state
        gemms = [
            (2 * config.d_inner, d, n),
            (low, config.d_inner, n),
            (config.d_inner, config.dt_rank, n),
            (d, config.d_inner, n),
        ]
    if (attention := config.attention) is not None:
        calls, heads = len(attention.layers), attention.n_heads + 2 * attention.n_kv_heads
        gemms += [
            (heads * attention.head_dim, 2 * d if attention.shared else d, calls),
            (d, attention.n_heads * attention.head_dim, calls),
        ]
        if attention.shared:
            gemms.append((d, d, calls))
        if rank := attention.adapter_rank:
            gemms += [(rank, 2 * d, 3 * calls), (heads * attention.head_dim, rank, calls)]
    if (mlp := config.mlp) is not None:
        rows, calls = (2 if mlp.gated else 1) * mlp.d_ff, config.n_mlp_calls
        gemms += [(rows, d, calls), (d, mlp.d_ff, calls)]
        if rank := mlp.adapter_rank:
            gemms += [(rank, d, calls), (rows, rank, calls)]
    if (experts := config.experts) is not None:
        calls, inputs = len(experts.layers), 2 if experts.gated else 1
        gemms.append((experts.n_experts, d, calls))
        if experts.d_latent:
            gemms += [(experts.d_latent, d, calls), (d, experts.d_latent, calls)]
        chosen = (experts.d_latent or d, experts.d_ff, experts.router.n_chosen * calls)
        for own, width, count in (chosen, (d, experts.shared_d_ff, calls)):
            if width:
                gemms += [(inputs * width, own, count), (own, width, count)]
    return gemms


def measure_ceilings(
    work: ModelWork, tp: int, threads: int, dtype: str, rows: int, repeats: int = 5
) -> dict[str, float]:
    """Read bandwidth (bytes/s) and GEMM rate (FLOP/s) of `tp` processes at the same time.

    Args:
        work: whose matrix shapes are multiplied, each rank with its `1/tp` of the larger dimension.
        rows: rows of the activations (tokens of a prefill step).
    """
    request = {"gemms": work.gemms, "tp": tp, "threads": threads, "dtype": dtype, "rows": rows}
    command = [sys.executable, "-m", "sidewinder.bench.roofline", json.dumps(request)]
    command += ["--repeats", str(repeats)]
    processes = [
        subprocess.Popen([*command, "--core", str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(tp)
    ]
    outputs = [process.communicate()[0] for process in processes]
    failed = sum(process.returncode != 0 for process in processes)
    if failed:
        raise RuntimeError(
            f"{failed} of {tp} processes that measure the machine's ceilings failed (their errors "
            "are above); --no-ceilings leaves them out"
        )
    answers = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {
        "read_bytes_per_s": sum(answer["read_bytes_per_s"] for answer in answers),
        "gemm_flops_per_s": sum(answer["gemm_flops_per_s"] for answer in answers),
    }


def read_rate(repeats: int) -> float:
    """Bytes per second of a pass over memory with the threads that torch has."""
    block = torch.ones(READ_BYTES // 4)
    seconds = _median_seconds(lambda: torch.dot(block, block), repeats)
    return READ_BYTES / seconds


def gemm_rate(
    gemms: Sequence[Sequence[int]], tp: int, dtype: str, rows: int, repeats: int
) -> float:
    """FLOP/s of torch's own matrix products over one layer's worth of `gemms`."""
    flops, seconds = 0.0, 0.0
    for out, inner, count in gemms:
        out_local, inner_local = (out // tp, inner) if out >= inner else (out, inner // tp)
        x = torch.randn(rows, inner_local, dtype=getattr(torch, dtype))
        weight = torch.randn(out_local, inner_local, dtype=getattr(torch, dtype))
        once = _median_seconds(_product(x, weight), repeats)
        flops += 2.0 * rows * out_local * inner_local * count
        seconds += once * count
    return flops / seconds


def _product(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.nn.functional.linear(x, weight)


def _median_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _main() -> None:
    parser = argparse.ArgumentParser(
        description="One process's ceilings; used by measure_ceilings."
    )
    parser.add_argument("request")
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--core", type=int, required=True)
    args = parser.parse_args()
    request: dict[str, Any] = json.loads(args.request)
    torch.set_num_threads(request["threads"])
    # A CPU without 16-bit instructions multiplies faster in float32: the ceiling is the better one.
    rates = {
        dtype: gemm_rate(request["gemms"], request["tp"], dtype, request["rows"], args.repeats)
        for dtype in {request["dtype"], "float32"}
    }
    print(json.dumps({
        "read_bytes_per_s": read_rate(args.repeats),
        "gemm_flops_per_s": max(rates.values()),
    }))  # fmt: skip


if __name__ == "__main__":
    _main()
