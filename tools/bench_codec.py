"""Time the codecs of quantised sums on one core, native and in torch; prints one JSON object.

    taskset -c 0 .venv/bin/python tools/bench_codec.py > benchmarks/results/codec.json

Speeds are bytes of activations (not of messages) per second; the best of several calls.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from sidewinder.bench.machine import machine_info
from sidewinder.ops import dispatch
from sidewinder.ops.codec import CODECS, Codec, decode, encode, native, reduce


def gb_per_s(n_bytes: int, calls: int, run: Callable[[], Any]) -> float:
    """Speed of the fastest of `calls` runs, after one to warm up."""
    run()
    best = float("inf")
    for _ in range(calls):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return float(f"{n_bytes / best / 1e9:.4g}")


def speeds(codec: Codec, x: torch.Tensor, calls: int) -> dict[str, float]:
    """Each operation's, for activations like `x`; sums are over two ranks."""
    message = encode(x, codec)
    both, out = torch.stack([message[0], message[0]]), torch.empty_like(x)
    return {
        "encode": gb_per_s(x.nbytes, calls, lambda: encode(x, codec)),
        "decode_sum_encode": gb_per_s(x.nbytes, calls, lambda: reduce(both, codec)),
        "decode": gb_per_s(x.nbytes, calls, lambda: decode(message[None], codec, out)),
        "decode_sum": gb_per_s(x.nbytes, calls, lambda: decode(both[:, None], codec, out)),
    }


def measure(rows: int, width: int, calls: int) -> dict[str, Any]:
    """All codecs, dtypes and implementations at one size."""
    torch.set_num_threads(1)
    backends = [("torch", max(1, calls // 5))]
    if native.is_available():
        native._native.set_threads(1)
        backends.insert(0, ("native", calls))
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0)).to(dtype)
        for codec in CODECS.values():
            for backend, n_calls in backends:
                with dispatch.forced(backend):
                    row = speeds(codec, x, n_calls)
                found.append({"dtype": str(dtype)[6:], "codec": codec.name, "by": backend} | row)
    isa = native._native.isa() if native.is_available() else None
    return {
        "what": "codecs, GB/s of activations on one core",
        "command": " ".join(sys.argv),
        "machine": machine_info() | {"isa": isa},
        "rows": rows,
        "width": width,
        "speeds": found,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--calls", type=int, default=25)
    options = parser.parse_args()
    print(json.dumps(measure(options.rows, options.width, options.calls), indent=1))


if __name__ == "__main__":
    main()
