"""Latency and throughput of one engine on synthetic prompts."""

import random
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

from sidewinder.engine.outputs import RequestOutput
from sidewinder.llm import LLM
from sidewinder.sampling import SamplingParams


@dataclass(frozen=True)
class Load:
    """Equal requests that arrive together.

    Attributes:
        prompt_tokens: length of each prompt.
        output_tokens: tokens generated for each (greedy, end tokens ignored).
        batch: number of requests.
    """

    prompt_tokens: int = 512
    output_tokens: int = 64
    batch: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name}={value} is not a count; use 1 or more")


def measure(llm: LLM, load: Load, repeats: int) -> dict[str, Any]:
    """Run `load` once to warm up and `repeats` times for the record.

    Returns:
        Median, minimum and maximum over the repeats of: `ttft_s` (median request), `prefill_s`
        (until the last request's first token), `tpot_s` (median request), `total_s`, and the rates
        `prefill_tokens_per_s`, `decode_tokens_per_s`, `output_tokens_per_s`, `total_tokens_per_s`.

    Raises:
        ValueError: for fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats} is not a count; use 1 or more")
    run_once(llm, load, 0)
    runs = [run_once(llm, load, 1 + index) for index in range(repeats)]
    return {"load": asdict(load), "repeats": repeats} | {
        name: spread([value for run in runs if (value := run[name]) is not None])
        for name in runs[0]
    }


def spread(values: list[float]) -> dict[str, float] | None:
    """Median, minimum and maximum; None for no values."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def run_once(llm: LLM, load: Load, number: int) -> dict[str, float | None]:
    """Run `load` once; the figures of `measure`, of this one run.

    Args:
        llm: the engine.
        load: what to run.
        number: of the run; each has prompts of its own, so that no kept state serves them.
    """
    # Whatever the model's settings are: a penalty would keep steps out of graphs.
    params = SamplingParams(
        max_tokens=load.output_tokens, temperature=0.0, repetition_penalty=1.0, ignore_eos=True
    )
    prompts = [_prompt(load.prompt_tokens, number * load.batch + i) for i in range(load.batch)]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params)
    total = time.perf_counter() - started
    prefill = max(_seconds(output.metrics.ttft_s) for output in outputs)
    return _rates(load, outputs, prefill, total)


def _prompt(length: int, number: int) -> list[int]:
    """Token ids that differ between prompts from the start; below every vocabulary's size."""
    return random.Random(number).choices(range(97), k=length)


def _seconds(value: float | None) -> float:
    assert value is not None, "a finished request has its times"
    return value


def _rates(
    load: Load, outputs: list[RequestOutput], prefill: float, total: float
) -> dict[str, float | None]:
    decode_tokens = load.batch * (load.output_tokens - 1)
    tpots = [output.metrics.tpot_s for output in outputs if output.metrics.tpot_s is not None]
    prompt_tokens, output_tokens = load.batch * load.prompt_tokens, load.batch * load.output_tokens
    return {
        "ttft_s": statistics.median(_seconds(output.metrics.ttft_s) for output in outputs),
        "prefill_s": prefill,
        "tpot_s": statistics.median(tpots) if tpots else None,
        "total_s": total,
        "prefill_tokens_per_s": prompt_tokens / prefill,
        "decode_tokens_per_s": decode_tokens / (total - prefill) if decode_tokens else None,
        "output_tokens_per_s": output_tokens / total,
        "total_tokens_per_s": (prompt_tokens + output_tokens) / total,
    }
