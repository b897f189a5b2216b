"""What a decode step costs besides its kernels: CPU microseconds of its parts, on tiny shapes.

A model of width 64 leaves almost only Python and calls. Times are CPU time of the process, which
other programs disturb less than the clock. The last line of output is JSON.

    OMP_NUM_THREADS=1 python tools/profile_step.py
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
    ("logits", Model, "local_logits"),
    ("sampling", Sampler, "sample"),
    ("all of the rank's step", Runner, "step"),
)
"""What a part is called in the table, and where its function is."""


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


def measure(n_layers: int, batch: int, steps: int, spent: dict[str, float]) -> dict[str, float]:
    """CPU microseconds per step of a tiny Mamba: of each part, and of everything."""
    values = {
        "model_type": "mamba", "vocab_size": 512, "hidden_size": 64, "state_size": 16,
        "num_hidden_layers": n_layers, "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    params = SamplingParams(max_tokens=steps, temperature=0.0, ignore_eos=True)
    prompts = [[number + 1, 2, 3] for number in range(batch)]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(values))
        with LLM(
            folder, device="cpu", threads=1, load_format="random", max_batch_size=batch
        ) as llm:
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
            times = measure(n_layers, batch, args.steps, spent)
            rows.append({"batch": batch, "n_layers": n_layers, "cpu_us": times})
            for name, value in times.items():
                print(f"batch {batch:3}, {n_layers:3} layers: {name:24} {value:9.1f} µs")
    print(json.dumps({"machine": machine_info(), "rows": rows}))


if __name__ == "__main__":
    main()
