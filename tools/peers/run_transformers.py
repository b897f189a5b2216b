"""Time transformers on a published shape with random weights. Prints one JSON line."""

import argparse
import json
import resource
import time

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from sidewinder.bench.shapes import SHAPES


def measure(shape: str, dtype: str, prompt: int, new: int, batch_size: int) -> dict[str, float]:
    """Seconds of prefill (generate one token) and of `new` further steps of the whole batch."""
    config = AutoConfig.for_model(**SHAPES[shape])
    config.eos_token_id = None
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    tokens = torch.randint(0, config.vocab_size, (batch_size, prompt))

    def generate(n: int) -> float:
        started = time.perf_counter()
        model.generate(tokens, max_new_tokens=n, min_new_tokens=n, do_sample=False)
        return time.perf_counter() - started

    model.generate(tokens[:, :4], max_new_tokens=2, do_sample=False)  # first use
    prefill = generate(1)
    return {"prefill_s": prefill, "decode_s": generate(1 + new) - prefill}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        result = measure(args.shape, args.dtype, args.prompt, args.new, args.batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result | {"peak_bytes": peak, "version": transformers.__version__}))


if __name__ == "__main__":
    main()
