"""Decode steps of a hybrid on one core: recorded, from Python, and there by torch's attention, too.

    .venv/bin/python tools/bench_hybrid_decode.py           # 15 minutes; hybrid-decode.json
    .venv/bin/python tools/bench_hybrid_decode.py --family bamba    # hybrid-decode-bamba.json

A Zamba of 24 layers, width 1,024 and 16 heads of 128, or a Bamba of 24 layers, 3 of which attend,
and that width, on random weights. All ways run in turn in one engine; a figure is the median of its
repeats, a ratio that of the ratios.
"""

import argparse
import json
import random
import statistics
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sidewinder.bench.machine import machine_info
from sidewinder.bench.shapes import SHAPES
from sidewinder.llm import LLM
from sidewinder.ops.prompt_attention import prompt_attention
from sidewinder.sampling import SamplingParams

FAMILIES = {
    "zamba": SHAPES["zamba-7b"] | {
        "hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096,
        "num_attention_heads": 16, "num_key_value_heads": 16,
    },
    "bamba": SHAPES["bamba-9b"] | {
        "vocab_size": 32000, "hidden_size": 1024, "num_hidden_layers": 24,
        "intermediate_size": 3584, "num_attention_heads": 8, "num_key_value_heads": 2,
        "attn_layer_indices": [6, 12, 18], "mamba_n_heads": 32,
    },
}  # fmt: skip
LOADS = ((1, 16), (1, 1024), (1, 4000), (8, 16), (8, 1024))
"""Sequences, and tokens before the measured ones."""
NEW_TOKENS = 13


@contextmanager
def from_python(llm: LLM) -> Iterator[None]:
    """Without recorded steps, as with `--cuda-graphs off`."""
    runner = llm._executor._runner
    recorded, runner._recorded = runner._recorded, None
    try:
        yield
    finally:
        runner._recorded = recorded


@contextmanager
def torchs_attention() -> Iterator[None]:
    """Without our kernel, as where it was not built; in steps from Python."""
    ours = prompt_attention.implementations.pop("native")
    prompt_attention._choose()
    try:
        yield
    finally:
        prompt_attention.register("native", ours)


def tpot_ms(llm: LLM, batch: int, context: int) -> float:
    """Milliseconds a token, of the request that came last: no other's prompt is in its steps."""
    prompts = [random.Random(i).choices(range(97), k=context) for i in range(batch)]
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    times = [output.metrics.tpot_s for output in llm.generate(prompts, params)]
    return 1e3 * min(time for time in times if time is not None)


def measured(family: str, dtype: str, repeats: int) -> Iterator[dict[str, Any]]:
    """A row of every load."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(FAMILIES[family] | {"dtype": dtype}))
        with LLM(
            folder, device="cpu", dtype=dtype, load_format="random", threads=1, max_batch_size=8,
            max_step_tokens=2048, max_model_len=4200, state_cache_bytes=0, state_cache_host_bytes=0,
        ) as llm:  # fmt: skip
            for batch, context in tqdm(LOADS, desc=dtype):
                times: dict[str, list[float]] = {"torch_ms": [], "python_ms": [], "recorded_ms": []}
                for _ in range(repeats):
                    with from_python(llm):
                        with torchs_attention():
                            times["torch_ms"].append(tpot_ms(llm, batch, context))
                        times["python_ms"].append(tpot_ms(llm, batch, context))
                    times["recorded_ms"].append(tpot_ms(llm, batch, context))
                row = {name: statistics.median(found) for name, found in times.items()}
                gains = zip(times["python_ms"], times["recorded_ms"], strict=True)
                row["recorded_over_python"] = statistics.median(a / b for a, b in gains)
                yield (
                    {"dtype": dtype, "batch": batch, "tokens_before": context}
                    | row
                    | {"all": times}
                )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--family", choices=FAMILIES, default="zamba")
    parser.add_argument("--output", type=Path, help="default: in benchmarks/results")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "outputs have token ids and no text")
    machine = machine_info()
    dtypes = ("bfloat16", "float32")
    rows = [row for dtype in dtypes for row in measured(args.family, dtype, args.repeats)]
    name = "hybrid-decode" if args.family == "zamba" else f"hybrid-decode-{args.family}"
    output = args.output or Path(f"benchmarks/results/{name}.json")
    output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['dtype']}, batch {row['batch']}, behind {row['tokens_before']}: torch's "
            f"attention {row['torch_ms']:.1f} ms, ours {row['python_ms']:.1f}, recorded "
            f"{row['recorded_ms']:.1f}, {row['recorded_over_python']:.3f} times as fast"
        )


if __name__ == "__main__":
    main()
