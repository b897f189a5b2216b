"""TTFT, TPOT and throughput of the whole engine on random weights, one rank."""

import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu_checks.context import HYBRIDS, INTEGER_MODELS, MODELS, Context
from gpu_checks.draft_cases import DRAFT_MODELS, WRONG_DRAFTS, wrong_drafts
from gpu_checks.kernels import gemm_rate, model_gemm_rate, read_rate
from sidewinder.bench.roofline import model_work
from sidewinder.bench.speed import Load, measure
from sidewinder.config import ModelConfig
from sidewinder.llm import LLM
from sidewinder.ops.launching import EARLY_VARIABLE
from sidewinder.planning import plan_report
from sidewinder.quantise import BITS

SHORT = 256
"""Tokens of a prompt that a GPU runs in less time than Python launches its kernels."""
REPEATS = {"short prompt": 7}
"""Where not two: its graph is recorded in the second."""

Extra = Callable[[Context, dict[str, Any], float], dict[str, Any]]
"""Measures something else of a row's model; its figures."""


def run(context: Context) -> dict[str, Any]:
    """Every model: latency at batch 1, throughput at batch 32, graphs on; and off for one. Then
    what has other kernels, so that one of them that faults costs none of those figures."""
    read, rate = read_rate(context), gemm_rate(context)
    rows: list[dict[str, Any]] = []
    result = {"read_bytes_per_s": read, "gemm_flops_per_s": rate, "rows": rows}
    for model in (*MODELS, *HYBRIDS):
        if not context.has(15):
            rows.append({"model": model, "skipped": "out of time"})
            continue
        try:
            rows.append(measured_plainly(context, model, read))
        except Exception as error:
            rows.append({"model": model, "error": f"{type(error).__name__}: {error}"})
        context.keep(result)
        release()
    for row in rows:
        for name, seconds, extra in extras_of(row["model"]):
            if "decode_percent" not in row or not context.has(seconds):
                continue
            try:
                row |= extra(context, row, read)
            except Exception as error:
                row.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"
            context.keep(result)
            release()
    return result


def extras_of(model: str) -> Iterator[tuple[str, float, Extra]]:
    """What else is measured of a model: a name, the seconds that it wants, and how."""
    if model in MODELS[:2]:
        yield "kernels that wait", 12, waiting
    if model in DRAFT_MODELS:
        yield "wrong drafts", 12, with_wrong_drafts
    for kind in BITS if model in INTEGER_MODELS else ():
        yield kind, 15, partial(in_integers, kind=kind)


def loads(context: Context) -> dict[str, Load]:
    """What is run, by name."""
    return {
        "latency": Load(context.pick(8192, 12), context.pick(64, 4), 1),
        "batch 32": Load(context.pick(512, 6), context.pick(64, 4), context.pick(32, 3)),
        "short prompt": Load(context.pick(SHORT, 5), context.pick(2, 2), 1),
    }


def measured_plainly(context: Context, model: str, read: float) -> dict[str, Any]:
    """One model's figures beside its floors."""
    row: dict[str, Any] = {"model": model}
    with config_folder(context, row) as folder:
        for graphs in ("auto", "off"):
            with engine(context, folder, graphs) as llm:
                row.setdefault("engine", llm.report())
                for name, load in loads(context).items():
                    if graphs == "auto" or load.batch == 1:
                        repeats = context.pick(REPEATS.get(name, 2), 1)
                        row[f"{name}, graphs {graphs}"] = measure(llm, load, repeats)
            release()
            if model != MODELS[0]:
                break
    return row | floors(context, model, loads(context)["latency"], row, read)


def in_integers(context: Context, row: dict[str, Any], read: float, *, kind: str) -> dict[str, Any]:
    """The same with rounded weights: latency and a batch, and the floor of a decode step. How long
    their rounding takes shows in the seconds until the engine is there."""
    found: dict[str, Any] = {}
    began = time.monotonic()
    with (
        config_folder(context, row) as folder,
        engine(context, folder, "auto", weight_dtype=kind) as llm,
    ):
        found[f"{kind}_start_s"] = time.monotonic() - began
        for name in ("latency", "batch 32"):
            load = loads(context)[name]
            found[f"{name}, {kind}"] = measure(llm, load, context.pick(2, 1))
    config = context.config(row["model"])
    rank = plan_report(config, 1, context.dtype, weight_dtype=kind)["ranks"][0]
    moved = rank["decode_weight_bytes"] + 2 * rank["state_bytes_per_sequence"]
    percent = 100 * moved / read / found[f"latency, {kind}"]["tpot_s"]["median"]
    return found | {f"{kind}_decode_bytes": moved, f"{kind}_decode_percent": percent}


def with_wrong_drafts(context: Context, row: dict[str, Any], _: float) -> dict[str, Any]:
    """Latency of steps with drafts none of which is accepted, so that each gives one token; over
    steps without, which start before the host has seen the tokens of those before them."""
    with (
        config_folder(context, row) as folder,
        wrong_drafts(),
        engine(context, folder, "auto", speculate=WRONG_DRAFTS) as llm,
    ):
        found = measure(llm, loads(context)["latency"], context.pick(2, 1))
    plain = row["latency, graphs auto"]["tpot_s"]["median"]
    name = f"latency, {WRONG_DRAFTS} wrong drafts"
    return {name: found, "wrong_drafts_ratio": found["tpot_s"]["median"] / plain}


def waiting(context: Context, row: dict[str, Any], _: float) -> dict[str, Any]:
    """Latency without kernels that start while those before them end."""
    os.environ[EARLY_VARIABLE] = "0"
    try:
        with config_folder(context, row) as folder, engine(context, folder, "auto") as llm:
            found = measure(llm, loads(context)["latency"], context.pick(2, 1))
    finally:
        del os.environ[EARLY_VARIABLE]
    return {"latency, kernels that wait": found}


def release() -> None:
    """Give a closed engine's memory back, so that the next one finds it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def engine(context: Context, folder: str, graphs: str, **options: Any) -> LLM:
    """Without kept states: prompts would stop to make them, and none comes again."""
    return LLM(
        folder,
        device=context.device.type,
        load_format="random",
        cuda_graphs=graphs,
        max_batch_size=32,
        max_step_tokens=context.pick(8192, 16),
        state_cache_bytes=0,
        state_cache_host_bytes=0,
        **options,
    )


@contextmanager
def config_folder(context: Context, row: dict[str, Any]) -> Iterator[str]:
    """With config.json of the row's model, for an engine that draws its weights."""
    with tempfile.TemporaryDirectory() as folder:
        write_config(context, row["model"], Path(folder))
        yield folder


def write_config(context: Context, model: str, folder: Path) -> None:
    """config.json of the model, for an engine that draws its weights."""
    (folder / "config.json").write_text(json.dumps(context.values(model)))


def floors(
    context: Context, model: str, load: Load, row: dict[str, Any], read: float
) -> dict[str, Any]:
    """Bytes of a decode step over the bandwidth (a hybrid's keys and values half way through the
    text, too); operations of the prefill over the rate that torch reaches on this model's matrices.
    """
    config = context.config(model)
    rank = plan_report(config, 1, context.dtype)["ranks"][0]
    moved = rank["decode_weight_bytes"] + 2 * rank["state_bytes_per_sequence"]
    moved += rank["kv_bytes_per_token"] * (load.prompt_tokens + load.output_tokens // 2)
    work, rate = model_work(config, context.dtype.itemsize), model_gemm_rate(context, config)
    operations = load.prompt_tokens * work.flops_per_token + attention_flops(config, load)
    prefill = operations / rate
    latency = row["latency, graphs auto"]
    return {
        "decode_bytes": moved,
        "decode_floor_s": moved / read,
        "model_gemm_flops_per_s": rate,
        "prefill_floor_s": prefill,
        "decode_percent": 100 * moved / read / latency["tpot_s"]["median"],
        "prefill_percent": 100 * prefill / latency["prefill_s"]["median"],
    }


def attention_flops(config: ModelConfig, load: Load) -> float:
    """Operations of a hybrid's causal attention over the prompt; half of the scores are masked."""
    if config.attention is None:
        return 0.0
    width = config.attention.n_heads * config.attention.head_dim
    return 2.0 * load.prompt_tokens**2 * width * len(config.attention.layers)
