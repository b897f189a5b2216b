"""`sidewinder bench`: latency and throughput, beside the machine's ceilings."""

import argparse
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path
from typing import Any

from sidewinder.bench.machine import machine_info
from sidewinder.bench.roofline import measure_ceilings, model_work
from sidewinder.bench.shapes import SHAPES, is_shape, write_shape
from sidewinder.bench.speed import Load, measure
from sidewinder.checkpoint.hub import resolve_model
from sidewinder.cli import bench_collectives, bench_serve
from sidewinder.cli.options import (
    add_engine_options,
    add_result_options,
    check_output,
    engine_options,
    give_result,
)
from sidewinder.config import ModelConfig, load_model_config
from sidewinder.llm import LLM
from sidewinder.parallel.cores import threads_per_rank
from sidewinder.parallel.devices import DTYPES

DESCRIPTION = f"""\
Measure one engine (latency, throughput), its sums over ranks (collectives), or a server (serve).
MODEL is a folder, a .gguf file, a hub id, or the name of a published shape, which runs with random
weights and needs no download:
{textwrap.fill(", ".join(SHAPES), 98, initial_indent="  ", subsequent_indent="  ")}"""


def add_parser(subparsers: Any) -> None:
    """Register the kinds of benchmarks."""
    parser = subparsers.add_parser(
        "bench",
        help="measure speed",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="bench", metavar="KIND", required=True)
    for kind, text, batch in (
        ("latency", "one request at a time: TTFT, TPOT, percent of the machine's ceilings", 1),
        ("throughput", "requests that arrive together: tokens per second", 16),
    ):
        _add_load_options(kinds.add_parser(kind, help=text, description=text), batch)
    bench_collectives.add_parser(kinds)
    bench_serve.add_parser(kinds)


def _add_load_options(parser: argparse.ArgumentParser, batch: int) -> None:
    add_engine_options(parser, shapes=True)
    load = parser.add_argument_group("load")
    for name, default, text in (
        ("--prompt-tokens", 512, "prompt length"),
        ("--output-tokens", 64, "tokens generated for each prompt"),
        ("--batch", batch, "requests that arrive together"),
        ("--repeats", 5, "counted runs, after one to warm up"),
    ):
        load.add_argument(name, type=int, default=default, metavar="N", help=f"{text} ({default})")
    load.add_argument(
        "--no-ceilings", action="store_true", help="skip measuring the machine itself"
    )
    add_result_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit status."""
    load = Load(args.prompt_tokens, args.output_tokens, args.batch)
    options = engine_options(args)
    if options.get("speculate"):
        raise ValueError(
            f"speculate={options['speculate']}: drafts of random prompts, or of random models, "
            "which loop, would say nothing; leave it out, or measure a server with `bench serve`"
        )
    check_output(args)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "outputs have token ids and no text")  # as all do here
        model = args.model
        if is_shape(model):
            model = str(write_shape(model, Path(folder)))
            options["load_format"] = "random"
        config = load_model_config(resolve_model(model, options.get("revision"), weights=False))
        with LLM(model, progress=True, **{"max_batch_size": max(32, load.batch)} | options) as llm:
            result = measure(llm, load, args.repeats)
            engine = llm.report() | {
                "weight_dtype": llm.config.weight_dtype,
                "threads": threads_per_rank(llm.config.threads, llm.config.tp),
                "max_step_tokens": llm.config.max_step_tokens,
            }
    result = {"model": args.model, "bench": args.bench, "engine": engine, **result}
    if not args.no_ceilings and engine["device"] == "cpu":
        result["ceilings"] = _ceilings(config, engine, load)
        result["percent_of_ceiling"] = _percent(result, load)
    result |= {"machine": machine_info(), "command": sys.argv}
    give_result(args, result, _print)
    return 0


def _ceilings(config: ModelConfig, engine: dict[str, Any], load: Load) -> dict[str, float]:
    """What this machine can do for this model, and the floors in seconds that follow."""
    work = model_work(config, DTYPES[engine["dtype"]].itemsize, engine["weight_dtype"])
    rows = min(engine["max_step_tokens"], load.batch * load.prompt_tokens)
    measured = measure_ceilings(work, engine["tp"], engine["threads"], engine["dtype"], rows)
    prompt_tokens = load.batch * load.prompt_tokens
    state_bytes = 2 * load.batch * engine["tp"] * engine["state_bytes_per_sequence"]
    return measured | {
        "prefill_floor_s": prompt_tokens * work.flops_per_token / measured["gemm_flops_per_s"],
        "decode_step_floor_s": (work.bytes_per_decode_step + state_bytes)
        / measured["read_bytes_per_s"],
    }


def _percent(result: dict[str, Any], load: Load) -> dict[str, float]:
    """How near the medians come to the floors, in percent."""
    ceilings = result["ceilings"]
    percent = {"prefill": 100 * ceilings["prefill_floor_s"] / result["prefill_s"]["median"]}
    if result["tpot_s"] is not None and load.batch == 1:
        percent["decode"] = 100 * ceilings["decode_step_floor_s"] / result["tpot_s"]["median"]
    return percent


_ROWS = [
    ("TTFT", "ttft_s", 1e3, "ms"),
    ("TPOT", "tpot_s", 1e3, "ms"),
    ("prefill", "prefill_tokens_per_s", 1, "tokens/s"),
    ("decode", "decode_tokens_per_s", 1, "tokens/s"),
    ("output", "output_tokens_per_s", 1, "tokens/s"),
    ("total", "total_tokens_per_s", 1, "tokens/s"),
]


def _print(result: dict[str, Any]) -> None:
    engine, load = result["engine"], result["load"]
    rounded = "" if engine["weight_dtype"] == "auto" else f", weights in {engine['weight_dtype']}"
    sums = f", sums over {engine['collectives']}" if engine["tp"] > 1 else ""
    print(
        f"{result['model']}: tp={engine['tp']}, {engine['threads']} threads per rank, "
        f"{engine['dtype']}{rounded}{sums}; batch {load['batch']}, "
        f"{load['prompt_tokens']} + {load['output_tokens']} tokens, {result['repeats']} repeats"
    )
    for name, key, scale, unit in _ROWS:
        if (values := result[key]) is not None:
            low, middle, high = (scale * values[part] for part in ("min", "median", "max"))
            print(f"  {name:<8} {middle:10.2f} {unit:<9} ({low:.2f} to {high:.2f})")
    for name, percent in result.get("percent_of_ceiling", {}).items():
        print(f"  {name:<8} {percent:10.0f} % of this machine's ceiling, measured in this run")
