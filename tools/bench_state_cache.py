"""Time to first token with a cold and a warm shared prefix; writes one JSON object.

    python tools/bench_state_cache.py --out benchmarks/results/prefix-cache.json

Random weights of a published shape: the work does not depend on their values. Every cold run has a
prefix of its own; every warm run shares its prefix with an earlier request and has a question of
its own after it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from sidewinder import LLM, SamplingParams
from sidewinder.bench.machine import machine_info
from sidewinder.bench.shapes import SHAPES, write_shape
from sidewinder.bench.speed import spread

GREEDY = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)


def prompt(n_tokens: int, number: int) -> list[int]:
    """Token ids that differ from the first one on between numbers."""
    return [(1 + 7919 * number + 31 * n * n + n) % 5000 for n in range(n_tokens)]


def ttft(llm: LLM, tokens: list[int]) -> tuple[float, int]:
    """Seconds to the first token, and how many tokens were cached."""
    (output,) = llm.generate([tokens], GREEDY)
    assert output.metrics.ttft_s is not None
    return output.metrics.ttft_s, output.metrics.cached_tokens


def measure(llm: LLM, n_prefix: int, n_question: int, repeats: int) -> dict[str, Any]:
    """Cold and warm figures with the cache of `llm`."""
    ttft(llm, prompt(64, 0))
    cold = [ttft(llm, prompt(n_prefix + n_question, 1 + i))[0] for i in range(repeats)]
    warm = [
        ttft(llm, prompt(n_prefix, 1) + prompt(n_question, 100 + i)) for i in range(3 * repeats)
    ]
    again = [ttft(llm, prompt(n_prefix + n_question, 1)) for _ in range(repeats)]
    result: dict[str, Any] = {
        "cold_ttft_s": spread(cold),
        "warm_ttft_s": spread([seconds for seconds, _ in warm]),
        "warm_cached_tokens": [n_cached for _, n_cached in warm],
        "same_prompt_ttft_s": spread([seconds for seconds, _ in again]),
        "same_prompt_cached_tokens": [n_cached for _, n_cached in again],
    }
    result["speedup"] = result["cold_ttft_s"]["median"] / result["warm_ttft_s"]["median"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="mamba-130m", choices=SHAPES)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--prefix", type=int, default=2048, help="shared tokens")
    parser.add_argument("--question", type=int, default=32, help="tokens after them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_shape(args.shape, Path(folder), args.dtype)
        options: dict[str, Any] = {"tp": args.tp, "load_format": "random", "tokenizer": folder}
        with LLM(model, state_cache_bytes=0, **options) as llm:
            ttft(llm, prompt(64, 0))
            n_tokens = args.prefix + args.question
            off = [ttft(llm, prompt(n_tokens, 1 + i))[0] for i in range(args.repeats)]
        with LLM(model, **options) as llm:
            result = {
                "machine": machine_info(),
                "command": " ".join(["python", *sys.argv]),
                "shape": args.shape,
                "dtype": args.dtype,
                "tp": args.tp,
                "prefix_tokens": args.prefix,
                "question_tokens": args.question,
                "state_bytes": llm.runner_report.cache.state_bytes,
                "cache_off_ttft_s": spread(off),
                **measure(llm, args.prefix, args.question, args.repeats),
            }
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
