"""transformers on the same shapes in the same run, with its fast kernels where installed."""

import time
from importlib.util import find_spec
from typing import Any

import torch

from gpu_checks.context import MODELS, Context


def run(context: Context) -> dict[str, Any]:
    """Prefill and greedy decode at batch 1."""
    fast = {name: find_spec(name) is not None for name in ("mamba_ssm", "causal_conv1d")}
    rows = []
    for model in (MODELS[0], MODELS[1], MODELS[3]):
        if not context.has(10):
            rows.append({"model": model, "skipped": "out of time"})
            continue
        try:
            rows.append({"model": model} | measured(context, model))
        except Exception as error:
            rows.append({"model": model, "error": f"{type(error).__name__}: {error}"})
        context.keep({"rows": rows})
    path = "its fast kernels" if all(fast.values()) else "its slow path (fast kernels missing)"
    return {"fast_kernels": fast, "path": path, "rows": rows}


@torch.inference_mode()
def measured(context: Context, model: str) -> dict[str, Any]:
    """Seconds of a prefill, and per token of the decode steps after it."""
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM
    config = AutoConfig.for_model(**context.values(model))
    config.eos_token_id = None
    with torch.device(context.device):
        oracle = factory.from_config(config, dtype=context.dtype).eval()
    prompt, new = context.pick(512, 6), context.pick(32, 2)
    tokens = torch.randint(0, 90, (1, prompt), device=context.device)
    times = []
    for n in (1 + new, 1, 1 + new):  # The first warms up, decode steps too: kernels are compiled.
        before = time.perf_counter()
        oracle.generate(tokens, max_new_tokens=n, min_new_tokens=n, do_sample=False)
        if context.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - before)
    return {
        "transformers": transformers.__version__,
        "prompt_tokens": prompt,
        "prefill_s": times[1],
        "tpot_s": (times[2] - times[1]) / new,
    }
