"""How long collectives take, by the definitions of nccl-tests.

`S` is the size of one rank's uncompressed message and `t` the time of a call, the slowest rank's:
algbw = S / t, and busbw = algbw · 2(W-1)/W for an all-reduce among W ranks, which compares with
the hardware's bandwidth whatever W is. Of many calls, the median and the 99.9th percentile count.
Wire bytes are what one rank sends in a call, without headers. A codec's error is given as
signal-to-quantisation-noise ratio, 10·log10(|sum|² / |sum - result|²), by the parts' distribution.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sidewinder.bench.machine import machine_info
from sidewinder.collectives.base import Collectives
from sidewinder.collectives.quantised.all_reduce import QuantisedCollectives
from sidewinder.collectives.quantised.policy import EXACT, policy_of
from sidewinder.collectives.shared_memory import SharedMemoryCollectives
from sidewinder.memory import keep_freed_memory
from sidewinder.ops.codec import CODECS
from sidewinder.parallel.group import TensorParallel
from sidewinder.parallel.process_executor import ProcessExecutor
from sidewinder.parallel.protocol import Transport

TARGET = f"{__name__}:build_bench"

SITE = "bench"
WARM_UP = 20
WIDTH = 1024
"""Channels of the activations: a message is rows of them."""
SQNR_ROWS = 256
BYTES_PER_SIZE = 1 << 30
"""Large messages are repeated less often: so many bytes in all, but 20 times at least."""


def bench_all_reduce(
    tp: int,
    transport: Transport,
    sizes: Sequence[int],
    dtype: str = "bfloat16",
    calls: int = 1000,
    threads: int = 1,
    codec: str = EXACT,
) -> dict[str, Any]:
    """Time all-reduces among `tp` fresh CPU ranks; a JSON-able report.

    Over shared memory each row also holds what bare spinning shows in the same run ("bare"): an
    operating system that takes a core away for milliseconds shows in both.

    Args:
        tp: number of ranks, 2 or more.
        transport: "shared memory", "tcp" or "gloo".
        sizes: bytes of one rank's message.
        dtype: "float32", "bfloat16" or "float16".
        calls: how often each size is called, large ones less often.
        threads: CPU threads per rank.
        codec: "exact", or the codec that the messages are in.
    """
    executor = ProcessExecutor(tp, TARGET, None, None, transport=transport, threads=threads)
    try:
        rows = [executor.call("all_reduce", size, dtype, calls, codec) for size in sizes]
        sqnr = {} if codec == EXACT else executor.call("sqnr", dtype, codec)
        if transport == "shared memory":
            for row in rows:
                row["bare"] = executor.call("bare_exchanges", row["calls"], row["median_us"])
    finally:
        executor.close()
    return {
        "what": "all_reduce",
        "machine": machine_info(),
        "tp": tp,
        "transport": transport,
        "dtype": dtype,
        "codec": codec,
        "sqnr_db": sqnr,
        "rows": rows,
    }


def wire_bytes(rows: int, width: int, item_bytes: int, ranks: int, codec: str) -> int:
    """What one rank sends in a sum of `[rows, width]`, without headers.

    An exact sum among three or more ranks counts as two-shot, as all but short ones are.
    """
    if codec == EXACT:
        return rows * width * item_bytes * 2 * (ranks - 1) // ranks
    if ranks == 2:
        return CODECS[codec].stripe_bytes(rows, width, 1)
    return 2 * (ranks - 1) * CODECS[codec].stripe_bytes(rows, width, ranks)


def distributions(parts: int, rows: int, width: int) -> dict[str, Tensor]:
    """Random terms of a sum, float32 `[parts, rows, width]`, the same at every call.

    Of "outliers", every 128th channel is 50 times as large; it is the others' error that counts.
    """
    generator = torch.Generator().manual_seed(0)
    shape = parts, rows, width
    gaussian = torch.randn(shape, generator=generator)
    outliers = gaussian.clone()
    outliers[..., ::128] *= 50
    uniform = torch.rand(shape, generator=generator) * 2 - 1
    return {
        "gaussian": gaussian,
        "uniform": uniform,
        "laplace": -uniform.sign() * (1 - uniform.abs()).clamp_min(1e-9).log(),
        "outliers": outliers,
    }


def bench_calls(tp: int, calls: int = 10_000) -> dict[str, Any]:
    """Time calls of an executor that do nothing: what a step costs before its work; a report."""
    executor = ProcessExecutor(tp, TARGET, None, None)
    try:
        seconds = []
        for _ in range(WARM_UP + calls):
            start = time.perf_counter()
            executor.call("nothing", 0)
            seconds.append(time.perf_counter() - start)
    finally:
        executor.close()
    summary = _summary(torch.tensor(seconds[WARM_UP:], dtype=torch.float64))
    return {"what": "call", "machine": machine_info(), "tp": tp, "calls": calls} | summary


def build_bench(_: object, __: object, tp: TensorParallel, collectives: Collectives) -> "Bench":
    """The worker's target."""
    return Bench(tp, collectives)


class Bench:
    """One rank's part of a measurement."""

    def __init__(self, tp: TensorParallel, collectives: Collectives) -> None:
        self._tp, self._collectives = tp, collectives
        keep_freed_memory()  # As runners do: messages are not to pay for new pages at every call.

    def all_reduce(self, size: int, dtype: str, calls: int, codec: str) -> dict[str, Any]:
        """Check and time messages of about `size` bytes; one row of the report."""
        element = getattr(torch, dtype)
        n = max(1, size // element.itemsize)
        x = torch.empty(-(-n // WIDTH), min(n, WIDTH), dtype=element)
        group: Collectives = self._collectives
        if codec == EXACT:
            self._check_sum(x)
        else:
            group = QuantisedCollectives(group, policy_of(codec))
        calls = min(calls, max(20, BYTES_PER_SIZE // max(1, size)))
        x.zero_()  # So that repeated sums in place stay finite.
        for _ in range(WARM_UP):
            x = group.all_reduce_delta(x, SITE, 0)
        seconds = self._slowest([self._timed(x, group) for _ in range(calls)])
        wire = wire_bytes(len(x), x.shape[1], x.element_size(), self._tp.size, codec)
        row = {"bytes": x.nbytes, "wire_bytes": wire, "calls": calls}
        return row | _summary(seconds) | self._bandwidth(x, seconds)

    def sqnr(self, dtype: str, codec: str) -> dict[str, float]:
        """Error of a codec's sum by distribution, in decibels."""
        group = QuantisedCollectives(self._collectives, policy_of(codec))
        found = {}
        for name, parts in distributions(self._tp.size, SQNR_ROWS, WIDTH).items():
            parts = parts.to(getattr(torch, dtype))
            exact = parts.double().sum(0)
            result = group.all_reduce_delta(parts[self._tp.rank].clone(), SITE, 0).double()
            counted = torch.ones(WIDTH, dtype=torch.bool)
            counted[::128] = name != "outliers"
            noise = (exact - result)[:, counted].square().sum()
            found[name] = float(10 * (exact[:, counted].square().sum() / noise).log10())
        return found

    def nothing(self, _: int) -> None:
        """Answer at once."""

    def bare_exchanges(self, calls: int, every_us: float) -> dict[str, float]:
        """What ranks see that only spin on each other's flags, at the pace of real calls."""
        assert isinstance(self._collectives, SharedMemoryCollectives)
        nanoseconds = self._collectives.bare_exchanges(calls, every_us * 1e3)
        return _summary(self._slowest([each * 1e-9 for each in nanoseconds]))

    def _timed(self, x: Tensor, group: Collectives | None = None) -> float:
        """Seconds of one sum, by `group` if it is not the transport's own."""
        group = group or self._collectives
        start = time.perf_counter()
        group.all_reduce_delta(x, SITE, 0)
        return time.perf_counter() - start

    def _check_sum(self, x: Tensor) -> None:
        pattern = (torch.arange(x.numel()) % 64).view_as(x)
        result = self._collectives.all_reduce(x.copy_(pattern + self._tp.rank))
        expected = pattern * self._tp.size + sum(range(self._tp.size))
        assert torch.equal(result, expected.to(x.dtype)), f"wrong sum of {x.nbytes} bytes"

    def _slowest(self, seconds: list[float]) -> Tensor:
        """Of every call, the slowest rank's time."""
        mine = torch.tensor([seconds], dtype=torch.float64)
        everyone = self._collectives.all_gather(mine, [len(seconds)] * self._tp.size)
        return everyone.view(self._tp.size, -1).amax(0)

    def _bandwidth(self, x: Tensor, seconds: Tensor) -> dict[str, float]:
        algbw = x.nbytes / float(seconds.median()) / 1e9
        return {"algbw_gbps": algbw, "busbw_gbps": algbw * 2 * (self._tp.size - 1) / self._tp.size}


def _summary(seconds: Tensor) -> dict[str, float]:
    return {
        "median_us": float(seconds.median()) * 1e6,
        "p999_us": float(seconds.quantile(0.999)) * 1e6,
        "max_us": float(seconds.max()) * 1e6,
    }
