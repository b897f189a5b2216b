"""Sidewinder on a shape with random weights, as a contestant (`lines.serve`).

A request has prompt, new and batch: it is run once, and timed.
"""

import argparse
import resource
import tempfile
from pathlib import Path
from typing import Any

from peers.lines import serve
from sidewinder import LLM, __version__
from sidewinder.bench.roofline import ModelWork, model_work
from sidewinder.bench.shapes import write_shape
from sidewinder.bench.speed import Load, run_once
from sidewinder.config import load_model_config
from sidewinder.parallel.devices import DTYPES


def run(llm: LLM, work: ModelWork, request: dict[str, Any], number: int) -> dict[str, Any]:
    """Times and rates of one load: prefill, then `new` decode steps of the whole batch."""
    load = Load(request["prompt"], request["new"] + 1, request["batch"])
    figures = run_once(llm, load, number)
    decode_s = figures["total_s"] - figures["prefill_s"]
    state = 2 * load.batch * llm.config.tp * llm.report()["state_bytes_per_sequence"]
    tokens = load.prompt_tokens * load.batch
    return figures | {
        "decode_s": decode_s,
        "prefill_flops_per_s": tokens * work.flops_per_token / figures["prefill_s"],
        "decode_bytes_per_s": request["new"] * (work.bytes_per_decode_step + state) / decode_s,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", help="a published shape, or a folder with config.json")
    parser.add_argument("--layers", type=int, help="run only so many layers")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--weight-dtype", default="auto")
    parser.add_argument("--cuda-graphs", default="auto")
    parser.add_argument("--max-batch", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_shape(args.shape, Path(folder), n_layers=args.layers)
        config = load_model_config(model)
        work = model_work(config, DTYPES[args.dtype].itemsize, args.weight_dtype)
        with LLM(
            str(model),
            tp=args.tp,
            threads=args.threads,
            device="cpu",
            dtype=args.dtype,
            weight_dtype=args.weight_dtype,
            cuda_graphs=args.cuda_graphs,
            tokenizer=None,
            max_batch_size=args.max_batch,
            load_format="random",
            state_cache_bytes=0,
        ) as llm:
            numbers = iter(range(1 << 30))
            run(llm, work, {"prompt": 16, "new": 2, "batch": 1}, next(numbers))
            about = llm.report() | {"version": __version__, "n_layers": config.n_layers}
            serve(lambda request: run(llm, work, request, next(numbers)), about)


if __name__ == "__main__":
    main()
