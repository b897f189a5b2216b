"""What torch reaches on this machine, as a contestant (`lines.serve`): the ceilings.

Answers any request with the read bandwidth, and one that only prefills with the rate of one shape's
matrix products at so many rows: a CPU without 16-bit instructions multiplies faster in float32.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from peers.lines import serve
from sidewinder.bench.roofline import gemm_rate, model_work, read_rate
from sidewinder.bench.shapes import write_shape
from sidewinder.config import load_model_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", help="a published shape, or a folder with config.json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tp", type=int, default=1, help="ranks that share the matrices")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        config = load_model_config(write_shape(args.shape, Path(folder)))
    gemms = model_work(config, 2).gemms

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        rows = request["prompt"] * request["batch"]
        figures = {"read_bytes_per_s": read_rate(3)}
        if request["new"] > 1:
            return figures
        rates = {
            f"gemm_{dtype}_flops_per_s": gemm_rate(gemms, args.tp, dtype, rows, 3)
            for dtype in ("bfloat16", "float32")
        }
        return figures | rates | {"gemm_flops_per_s": max(rates.values())}

    serve(answer, {"torch": torch.__version__})


if __name__ == "__main__":
    main()
