"""What long prompts do to running decodes, under both settings of `scheduling`.

    python tools/bench_scheduling.py models/mamba --decodes 4 --prompt-tokens 512

Some texts decode all the time; then long prompts are added, one after the other. The gap between
two tokens of a decode is the time of a step. Prints one JSON object.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sidewinder import LLM, SamplingParams
from sidewinder.bench.machine import machine_info
from sidewinder.bench.serve import distribution
from sidewinder.bench.shapes import SHAPES, write_shape

ENDLESS = SamplingParams(max_tokens=10**7, temperature=0, ignore_eos=True)
ONE = SamplingParams(max_tokens=1, temperature=0)


def steps(llm: LLM, seconds: float, prompt_tokens: int) -> dict[str, Any]:
    """Step for so long; with `prompt_tokens`, one prompt of that length is always under way."""
    engine, gaps, under_way, n_done = llm.engine, [], False, 0
    before, started = llm.counters.prompt_tokens, time.perf_counter()
    while time.perf_counter() - started < seconds:
        if prompt_tokens and not under_way:
            call = llm.intake.generation([9 + n_done % 80] * prompt_tokens, ONE)
            engine.add(call.request)
            under_way = True
        begun = time.perf_counter()
        ended = [part for part in engine.step() if part.output is not None]
        gaps.append(time.perf_counter() - begun)
        if ended:
            under_way, n_done = False, n_done + 1
    elapsed = time.perf_counter() - started
    return {
        "gap_s": distribution(gaps),
        "prompts": n_done,
        "prompt_tokens_per_s": (llm.counters.prompt_tokens - before) / elapsed,
        "steps_per_s": len(gaps) / elapsed,
    }


def measure(model: str, setting: str, args: argparse.Namespace, **options: Any) -> dict[str, Any]:
    """Decodes alone, then with prompts, under one setting."""
    with LLM(
        model, scheduling=setting, threads=args.threads, state_cache_bytes=0, **options
    ) as llm:
        for number in range(args.decodes):
            llm.engine.add(llm.intake.generation([10 + number] * 8, ENDLESS).request)
        steps(llm, 1.0, 0)
        alone = steps(llm, args.seconds, 0)
        steps(llm, 1.0, args.prompt_tokens)
        mixed = steps(llm, args.seconds, args.prompt_tokens)
    ratio = mixed["gap_s"]["p99"] / alone["gap_s"]["p99"]
    return {"scheduling": setting, "alone": alone, "with_prompts": mixed, "p99_ratio": ratio}


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder, or a published shape (random weights)")
    parser.add_argument("--decodes", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        model, options = args.model, {}
        if model in SHAPES and not Path(model).exists():
            model, options = str(write_shape(model, Path(folder))), {"load_format": "random"}
        rows = [measure(model, setting, args, **options) for setting in ("throughput", "latency")]
    print(json.dumps({"what": "decode gaps with and without prompts", "model": args.model,
                      "load": vars(args), "rows": rows, "machine": machine_info(),
                      "command": sys.argv}))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
