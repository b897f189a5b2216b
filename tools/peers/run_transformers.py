"""transformers on a shape with random weights, as a contestant (`lines.serve`)."""

import argparse
import resource
import time
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from peers.lines import serve
from sidewinder.bench.shapes import shape_values


def load(shape: str, dtype: str, n_layers: int | None) -> Any:
    """The model in eval mode; its weights are as it initialises them."""
    config = AutoConfig.for_model(**shape_values(shape, n_layers))
    config.eos_token_id = None
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()


def run(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of prefill (generate one token), and of `new` further steps of the whole batch.

    Both come from one run: the times at which tokens arrive.
    """
    times: list[float] = []

    class Clock(transformers.StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    shape = (request["batch"], request["prompt"])
    tokens = torch.randint(0, min(97, model.config.vocab_size), shape)
    n = 1 + request["new"]
    started = time.perf_counter()
    model.generate(
        tokens,
        max_new_tokens=n,
        min_new_tokens=n,
        do_sample=False,
        stopping_criteria=transformers.StoppingCriteriaList([Clock()]),
    )
    prefill_s, decode_s = times[0] - started, times[-1] - times[0]
    return {
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "prefill_tokens_per_s": request["batch"] * request["prompt"] / prefill_s,
        "decode_tokens_per_s": request["batch"] * request["new"] / decode_s,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", help="a published shape, or a folder with config.json")
    parser.add_argument("--layers", type=int, help="run only so many layers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load(args.shape, args.dtype, args.layers)
    with torch.inference_mode():
        run(model, {"prompt": 4, "new": 2, "batch": 1})
        serve(lambda request: run(model, request), {"version": transformers.__version__})


if __name__ == "__main__":
    main()
