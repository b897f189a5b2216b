"""Time Sidewinder on a published shape with random weights. Prints one JSON line."""

import argparse
import json
import tempfile
from pathlib import Path

from sidewinder import LLM, __version__
from sidewinder.bench.shapes import SHAPES, write_shape
from sidewinder.bench.speed import Load, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_shape(args.shape, Path(folder))
        options = {"tp": args.tp, "threads": args.threads, "dtype": args.dtype}
        with LLM(str(model), device="cpu", load_format="random", **options) as llm:
            result = measure(llm, Load(args.prompt, args.new + 1, args.batch), repeats=1)
    decode_s = result["total_s"]["median"] - result["prefill_s"]["median"]
    print(json.dumps({
        "prefill_s": result["prefill_s"]["median"],
        "decode_s": decode_s,
        "version": __version__,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
