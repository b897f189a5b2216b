"""Ranks that share one card: whether they can, and whether every path of sums is right there.

Times mean nothing here: the ranks take turns on one device.
"""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_checks.context import HYBRIDS, Context
from gpu_checks.end_to_end import write_config
from sidewinder.llm import LLM
from sidewinder.parallel.devices import SHARE_VARIABLE
from sidewinder.testing import relative_error

MODELS = ("mamba-2.8b", "mamba2-2.7b", "zamba-7b", "falcon-mamba-7b")
LIMITS = {"exact": 1e-4, "int8": 0.1, "int4": 1.0}
"""Relative error of logits of tiny models; a codec's says only that nothing is grossly wrong."""
AT_ONCE = 4
"""Groups of ranks that run side by side."""
PROMPTS = [[5, 80, 12, 44, 7], [9], list(range(30, 50))]


def run(context: Context) -> dict[str, Any]:
    """The probe, then parity of 2 ranks with one for hybrids that no card has run, and of 2 and 4
    for the others with every codec."""
    probe = "not on a CPU" if context.dry_run else probe_ipc()
    jobs = [(model, 2, "exact") for model in (HYBRIDS[-1:] if context.dry_run else HYBRIDS)]
    jobs += [
        (model, size, codec)
        for codec in (("exact",) if context.dry_run else LIMITS)
        for size in ((2,) if context.dry_run else (2, 4))
        for model in (MODELS[:1] if context.dry_run else MODELS)
    ]
    models = dict.fromkeys(model for model, _, _ in jobs)
    with tempfile.TemporaryDirectory() as folder, shared_card():
        folders = {model: write_tiny(model, Path(folder) / model) for model in models}
        single = {model: alone(context, folders[model]) for model in models}

        def compare(model: str, size: int, codec: str) -> dict[str, Any]:
            row = {"model": model, "tp": size, "all_reduce": codec}
            if not context.has(8):
                return row | {"skipped": "out of time"}
            if "error" in single[model]:
                return row | single[model]
            return row | parity(context, folders[model], size, codec, single[model])

        # Starting ranks takes longest; their work is done in processes of their own.
        rows = []
        with ThreadPoolExecutor(context.pick(AT_ONCE, 1)) as pool:
            for row in pool.map(lambda job: compare(*job), jobs):
                rows.append(row)
                context.keep({"cuda_ipc": probe, "rows": rows})
    return {"cuda_ipc": probe, "rows": rows}


def write_tiny(model: str, folder: Path) -> str:
    """config.json of the model's tiny sister: what is checked is who adds what, not speed."""
    folder.mkdir()
    write_config(Context(dry_run=True, budget_s=0), model, folder)
    return str(folder)


def alone(context: Context, folder: str) -> dict[str, Any]:
    """One rank's answers, or the error."""
    try:
        return answers(context, folder, 1, "exact")
    except Exception as error:
        return {"error": f"alone: {type(error).__name__}: {error}"}


def parity(
    context: Context, folder: str, size: int, codec: str, one: dict[str, Any]
) -> dict[str, Any]:
    """Logits and greedy tokens of `size` ranks on one card beside those of one rank."""
    try:
        many = answers(context, folder, size, codec)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    worst = max(
        relative_error(torch.from_numpy(mine), torch.from_numpy(reference))
        for reference, mine in zip(one["logits"], many["logits"], strict=True)
    )
    return {
        "relative_error": worst,
        "limit": LIMITS[codec],
        "passed": worst <= LIMITS[codec],
        "same_tokens": one["tokens"] == many["tokens"],
        "path": many["path"],
    }


def answers(context: Context, folder: str, size: int, codec: str) -> dict[str, Any]:
    """Logits of whole prompts, and greedy texts."""
    from sidewinder import SamplingParams

    with LLM(
        folder, tp=size, device=context.device.type, dtype="float32", load_format="random",
        all_reduce=codec, kv_cache_tokens=512, max_batch_size=4, timeout_s=60, threads=1,
        state_cache_bytes=0, state_cache_host_bytes=0,
    ) as llm:  # fmt: skip
        logits = [np.asarray(each) for each in llm.logits(PROMPTS)]
        params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
        tokens = [output.token_ids for output in llm.generate(PROMPTS, params)]
        return {"logits": logits, "tokens": tokens, "path": llm.report()["collectives"]}


@contextmanager
def shared_card() -> Iterator[None]:
    """Let ranks share a GPU while this lasts."""
    before = os.environ.get(SHARE_VARIABLE)
    os.environ[SHARE_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SHARE_VARIABLE]
        else:
            os.environ[SHARE_VARIABLE] = before


def probe_ipc() -> str:
    """Whether a second process can map this one's GPU memory: "works", or why not."""
    spawn = get_context("spawn")
    mine, theirs = spawn.Pipe()
    x = torch.arange(4, device="cuda")
    process = spawn.Process(target=_add_one, args=(theirs,))
    process.start()
    try:
        from torch.multiprocessing.reductions import reduce_tensor

        mine.send(reduce_tensor(x))
        if not mine.poll(30):
            return "no answer within 30 s"
        answer = mine.recv()
        torch.cuda.synchronize()
        return "works" if answer == "done" and x.tolist() == [1, 2, 3, 4] else str(answer)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        process.join(10)
        if process.is_alive():
            process.terminate()


def _add_one(pipe: Any) -> None:
    try:
        rebuild, arguments = pipe.recv()
        rebuild(*arguments).add_(1)
        torch.cuda.synchronize()
        pipe.send("done")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
