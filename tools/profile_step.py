"""What a decode step costs besides its kernels: CPU microseconds of its parts, on tiny shapes.

A model of width 64 leaves almost only Python and calls. Times are CPU time of the process, which
other programs disturb less than the clock. The last line of output is JSON.

    OMP_NUM_THREADS=1 python tools/profile_step.py
    OMP_NUM_THREADS=1 python tools/profile_step.py --family zamba --layers 24 --cuda-graphs off
"""

import argparse
import functools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidewinder import LLM, SamplingParams
from sidewinder.bench.machine import machine_info
from sidewinder.engine import runner as runner_module
from sidewinder.engine.recorded import RecordedSteps
from sidewinder.engine.runner import Runner
from sidewinder.engine.scheduler import Scheduler
from sidewinder.models.base import Model
from sidewinder.sampling.sampler import Sampler

PARTS: tuple[tuple[str, Any, str], ...] = (
    ("choosing what to run", Scheduler, "plan"),
    ("taking in the results", Scheduler, "commit"),
    ("packing the batch", runner_module, "pack"),
    ("embedding and layers", RecordedSteps, "forward"),
    ("layers from Python", Model, "forward"),
    ("logits", Model, "local_logits"),
    ("sampling", Sampler, "sample"),
    ("all of the rank's step", Runner, "step"),
)
"""What a part is called in the table, and where its function is."""


_COMMON = {
    "vocab_size": 512, "hidden_size": 64, "tie_word_embeddings": True, "dtype": "bfloat16",
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "mamba": _COMMON | {"model_type": "mamba", "state_size": 16},
    "zamba": _COMMON
    | {
        "model_type": "zamba", "intermediate_size": 256, "num_attention_heads": 4,
        "num_key_value_heads": 4, "n_mamba_heads": 2, "attn_layer_period": 6,
        "attn_layer_offset": 4,
    },
}  # fmt: skip


def timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """`function`, with its CPU time added to `spent[name]`."""

    @functools.wraps(function)
    def wrapper(*args: Any, **keywords: Any) -> Any:
        started = time.process_time_ns()
        try:
            return function(*args, **keywords)
        finally:
            spent[name] += (time.process_time_ns() - started) / 1e3

    return wrapper


def measure(
    values: dict[str, Any], graphs: str, batch: int, steps: int, spent: dict[str, float]
) -> dict[str, float]:
    """CPU microseconds per step of a tiny model: of each part, and of everything.

    Args:
        values: the model's config.json.
        graphs: the option `cuda_graphs`: "off" runs every step from Python.
        batch, steps: sequences, and how many tokens each gets.
        spent: what `timed` adds to.
    """
    params = SamplingParams(max_tokens=steps, temperature=0.0, ignore_eos=True)
    prompts = [[number + 1, 2, 3] for number in range(batch)]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(values))
        with LLM(
            folder, device="cpu", threads=1, load_format="random", max_batch_size=batch,
            cuda_graphs=graphs,
        ) as llm:  # fmt: skip
            llm.generate(prompts, params)
            spent.clear()
            started = time.process_time_ns()
            llm.generate(prompts, params)
            total = (time.process_time_ns() - started) / 1e3
    return {name: value / steps for name, value in spent.items()} | {"everything": total / steps}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=SHAPES, default="mamba")
    parser.add_argument("--cuda-graphs", choices=("auto", "off"), default="auto")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--layers", type=int, nargs="*", default=[1, 25])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 32])
    args = parser.parse_args()
    spent: dict[str, float] = defaultdict(float)
    for name, owner, attribute in PARTS:
        setattr(owner, attribute, timed(getattr(owner, attribute), name, spent))
    rows = []
    for batch in args.batches:
        for n_layers in args.layers:
            values = SHAPES[args.family] | {"num_hidden_layers": n_layers}
            times = measure(values, args.cuda_graphs, batch, args.steps, spent)
            rows.append({"batch": batch, "n_layers": n_layers, "cpu_us": times})
            for name, value in times.items():
                print(f"batch {batch:3}, {n_layers:3} layers: {name:24} {value:9.1f} µs")
    print(json.dumps({"machine": machine_info(), "rows": rows}))


if __name__ == "__main__":
    main()
